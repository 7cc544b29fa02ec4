"""The registry's lease, between threads on a real MLflow database."""

import threading
import time

import pytest
from mlflow import MlflowClient

from firstkd.settings import load_settings
from flows import lease
from flows.lease import registry_lease
from flows.tracking import Tracking, open_tracking
from flows.workspace import Workspace


@pytest.fixture
def tracking(project: Workspace) -> Tracking:
    return open_tracking(project.root, load_settings(project.root / "params.yaml").record)


def names(client: MlflowClient) -> list[str]:
    return [model.name for model in client.search_registered_models()]


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
    assert names(tracking.client) == []


def test_an_error_gives_it_back(tracking: Tracking) -> None:
    with pytest.raises(KeyboardInterrupt), registry_lease(tracking, "student"):
        raise KeyboardInterrupt
    assert names(tracking.client) == []


def test_of_another_model_it_is_another(tracking: Tracking) -> None:
    with registry_lease(tracking, "student"), registry_lease(tracking, "other"):
        assert sorted(names(tracking.client)) == ["other.lease", "student.lease"]


def test_what_a_killed_process_held_is_taken_over_and_not_given_back_twice(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.5)
    tracking.client.create_registered_model("student.lease", {"holder": "process 1 on gone (x)"})
    start = time.monotonic()
    with registry_lease(tracking, "student"):
        assert time.monotonic() - start > 0.5
        lease._give_back(tracking.client, "student.lease", "process 1 on gone (x)")
        assert names(tracking.client) == ["student.lease"]


def test_a_request_that_was_repeated_after_a_lost_answer_is_ours(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = tracking.client.create_registered_model

    def twice(*arguments: object) -> object:
        create(*arguments)  # type: ignore[arg-type]
        return create(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(tracking.client, "create_registered_model", twice)
    with registry_lease(tracking, "student"):
        assert names(tracking.client) == ["student.lease"]
    assert names(tracking.client) == []
