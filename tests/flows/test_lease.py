"""The registry's lease, between threads on a real MLflow database."""

import subprocess
import threading
import time
from collections.abc import Callable

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from firstkd.errors import PipelineError
from firstkd.settings import load_settings
from flows import lease
from flows.lease import registry_lease
from flows.tracking import Tracking, open_tracking
from flows.workspace import Workspace


@pytest.fixture
def tracking(project: Workspace) -> Tracking:
    return open_tracking(project.root, load_settings(project.root / "params.yaml").record)


def holders(tracking: Tracking) -> list[str]:
    tickets = tracking.client.search_model_versions("name = 'student.lease'")
    return [ticket.tags[lease.HOLDER_TAG] for ticket in tickets]


def draw(tracking: Tracking, holder: str, **tags: str) -> None:
    """Take a ticket as another process would."""
    lease._draw(tracking.client, "student.lease", holder)
    for ticket in tracking.client.search_model_versions("name = 'student.lease'"):
        if ticket.tags[lease.HOLDER_TAG] == holder:
            for key, value in tags.items():
                tracking.client.set_model_version_tag(ticket.name, ticket.version, key, value)


def test_only_one_holds_it_and_nothing_is_left(tracking: Tracking) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        with registry_lease(tracking, "student"):
            inside += 1
            most = max(most, inside)
            time.sleep(0.05)
            inside -= 1

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert (inside, most) == (0, 1)
    assert holders(tracking) == []


def test_an_error_gives_it_back(tracking: Tracking) -> None:
    with pytest.raises(KeyboardInterrupt), registry_lease(tracking, "student"):
        raise KeyboardInterrupt
    assert holders(tracking) == []


def test_of_another_model_it_is_another(tracking: Tracking) -> None:
    with registry_lease(tracking, "student"), registry_lease(tracking, "other"):
        assert len(holders(tracking)) == 1


def test_a_dead_process_of_this_machine_is_not_waited_for(tracking: Tracking) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    draw(tracking, "dead", process=str(ended.pid))
    with registry_lease(tracking, "student"):
        assert "dead" not in holders(tracking)


def test_a_holder_elsewhere_is_waited_for_and_then_taken_for_dead(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.6)
    monkeypatch.setattr(lease, "SAID_AT", 1)
    draw(tracking, "elsewhere", machine="another", process="1", host="far")
    start = time.monotonic()
    with registry_lease(tracking, "student"):
        assert time.monotonic() - start > 0.6
        assert "elsewhere" not in holders(tracking)
    assert "waiting for process 1 on far, which changes student.lease" in caplog.text


def test_whoever_stood_still_for_too_long_is_told_so(tracking: Tracking) -> None:
    with (
        pytest.raises(PipelineError, match="changed by another process while this one stood still"),
        registry_lease(tracking, "student") as check,
    ):
        check()
        [ours] = tracking.client.search_model_versions("name = 'student.lease'")
        draw(tracking, "another")
        check()
        tracking.client.delete_model_version(ours.name, ours.version)
        check()
    assert holders(tracking) == ["another"]


def test_a_waiting_process_whose_ticket_was_taken_for_dead_draws_another(
    tracking: Tracking,
) -> None:
    draw(tracking, "before", machine="another")
    entered = threading.Event()

    def work() -> None:
        with registry_lease(tracking, "student"):
            entered.set()

    waiting = threading.Thread(target=work)
    waiting.start()
    while len(holders(tracking)) < 2:
        time.sleep(0.05)
    for holder in set(holders(tracking)) - {"before"}:
        lease._give_back(tracking.client, "student.lease", holder)
    lease._give_back(tracking.client, "student.lease", "before")
    assert entered.wait(60)
    waiting.join(60)
    assert holders(tracking) == []


def test_a_request_that_was_repeated_after_a_lost_answer_is_ours(
    tracking: Tracking, lost_answer: Callable[[MlflowClient, str], None]
) -> None:
    lost_answer(tracking.client, "create_model_version")
    with registry_lease(tracking, "student"):
        assert len(holders(tracking)) == 2
    assert holders(tracking) == []


def test_a_server_that_is_away_at_the_end_does_not_undo_what_was_done(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: object) -> None:
        raise MlflowException("nobody answers")

    with registry_lease(tracking, "student"):
        monkeypatch.setattr(tracking.client, "delete_model_version", away)
    assert "student.lease could not be given back" in caplog.text
