"""Who is in charge, on a real registry: decisions, crashes, rollbacks, two at once."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from mlflow.entities.model_registry import ModelVersion

from firstkd.errors import PipelineError
from firstkd.operation_settings import PromoteSettings
from flows import promotion
from flows.project import Project
from flows.promotion import judge, promote, rollback, standing
from flows.record import record
from flows.registry import NOT_REPRODUCIBLE_TAG, aliases, register
from flows.tracking import Tracking
from flows.workspace import Workspace
from tasks.evidence import Evidence
from tasks.gate import Verdict
from tests.flows.projects import REPOSITORY, change, git, open_project
from tests.flows.test_cli import firstkd

QUESTIONS, CHOICES = 100, 4
NOTHING_BUT_ACCURACY = {
    "max_nll_increase": 1.0,
    "max_brier_increase": 1.0,
    "max_aurc_increase": 1.0,
}
WRITES = (
    "log_dict",
    "set_model_version_tag",
    "delete_model_version_tag",
    "set_registered_model_alias",
)
Make = Callable[..., ModelVersion]


@pytest.fixture
def tracking(opened_project: Project) -> Tracking:
    return opened_project.tracking


@pytest.fixture
def make(opened_project: Project, tmp_path: Path) -> Make:
    """Return a function that registers a version which answered so many of 100 questions right."""
    name, client = opened_project.model, opened_project.client

    def made(right: int, elsewhere: int = 50, test: str = "same") -> ModelVersion:
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        run_id = client.create_run(opened_project.tracking.experiment_id).info.run_id
        folder = tmp_path / run_id / "evaluation"
        folder.mkdir(parents=True)
        counts = {"test": right, "openbookqa": elsewhere}
        pd.concat(
            [answers(set_name, count) for set_name, count in counts.items()], ignore_index=True
        ).to_parquet(folder / "predictions.parquet")
        share = right / QUESTIONS
        accuracy = {"value": share, "low": share - 0.1, "high": share + 0.1}
        calibrated = {"accuracy": accuracy, "ece": {"value": 0.05}}
        metrics = {"temperature": 1.0, "sets": {"test": {"calibrated": calibrated}}}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        client.log_artifacts(run_id, str(folder), "evaluation")
        tags = {"test_sha256": test, "test_accuracy": "0.5", "git_commit": "none"}
        return client.create_model_version(name, "file:///nowhere", run_id, tags)

    return made


@pytest.fixture
def lenient(opened_project: Project) -> Project:
    """The project with limits under which accuracy alone decides."""
    return with_limits(opened_project, **NOTHING_BUT_ACCURACY)


def with_limits(project: Project, **limits: object) -> Project:
    promote = project.settings.promote.model_copy(update=limits)
    return replace(project, settings=project.settings.model_copy(update={"promote": promote}))


def answers(set_name: str, count: int) -> pd.DataFrame:
    """Of a model that is half sure of all it says, and right in the first `count` questions."""
    rows = []
    for i in range(QUESTIONS):
        answer = i % CHOICES
        given = answer if i < count else (answer + 1) % CHOICES
        rows.append(
            {
                "set": set_name,
                "id": f"q{i}",
                "answer": f"answer {answer}",
                "answer_index": answer,
                "is_right": [choice == answer for choice in range(CHOICES)],
                "scores": [math.log(3.0) if choice == given else 0.0 for choice in range(CHOICES)],
            }
        )
    return pd.DataFrame(rows)


def test_decision_is_kept_with_its_numbers_and_stands(
    opened_project: Project, tracking: Tracking
) -> None:
    run_id = record(opened_project).run_id
    version = register(opened_project, run_id)
    verdict = promote(opened_project, version)
    assert verdict.outcome == "promoted"
    assert verdict.reasons[0] == "ECE 0.050, at most 0.15 is allowed"
    assert aliases(opened_project) == {"challenger": "1", "champion": "1"}
    again = promote(opened_project, version)
    assert again.in_words("v1").splitlines()[0] == "v1 is already the champion"
    assert again.reasons == verdict.reasons
    [file] = tracking.client.list_artifacts(run_id, "promotion/version-1")
    kept = json.loads(Path(tracking.client.download_artifacts(run_id, file.path)).read_text())
    assert kept["passed"] and kept["limits"]["max_ece"] == 0.15 and kept["champion"] is None
    assert kept["challenger"]["sets"]["test"]["calibrated"]["ece"]["value"] == 0.05


def test_rollback_goes_back_step_by_step(lenient: Project, make: Make) -> None:
    for right in (50, 60, 70):
        assert promote(lenient, make(right)).passed
    assert aliases(lenient) == {"champion": "3"}
    assert rollback(lenient) == ("3", "2")
    assert aliases(lenient) == {"champion": "2"}
    assert rollback(lenient) == ("2", "1")
    assert aliases(lenient) == {"champion": "1"}
    with pytest.raises(PipelineError, match="v1 has no predecessor"):
        rollback(lenient)


def test_a_champion_that_comes_again_keeps_who_was_before_it(lenient: Project, make: Make) -> None:
    first, second, third = make(50), make(60), make(60)
    for version in (first, second, third, second):
        assert promote(lenient, version, again=True).passed
    assert aliases(lenient) == {"champion": "2"}
    assert rollback(lenient) == ("2", "3")
    assert rollback(lenient) == ("3", "1")
    with pytest.raises(PipelineError, match="v1 has no predecessor"):
        rollback(lenient)


def test_rollback_passes_over_a_version_that_was_deleted(lenient: Project, make: Make) -> None:
    for right in (50, 60, 70):
        promote(lenient, make(right))
    lenient.client.delete_model_version(lenient.model, "2")
    assert rollback(lenient) == ("3", "1")


def test_rolled_back_version_stays_back_until_asked_for(lenient: Project, make: Make) -> None:
    promote(lenient, make(50))
    second = make(60)
    promote(lenient, second)
    rollback(lenient)
    verdict = promote(lenient, second)  # as the next retraining does
    assert verdict.outcome == "rolled back"
    assert "rolled back to v1 on 20" in verdict.in_words("v2")
    assert aliases(lenient)["champion"] == "1"
    strict = with_limits(lenient, max_ece=0.0)
    assert promote(strict, second, again=True).outcome == "rejected"
    verdict = promote(lenient, second)  # with other limits again, as the next retraining does
    assert verdict.outcome == "rolled back" and "rolled back to v1 on" in verdict.in_words("v2")
    assert promote(lenient, second, again=True).passed
    assert aliases(lenient) == {"champion": "2"}


def test_older_state_that_comes_back_stays_replaced_until_asked_for(
    lenient: Project, make: Make
) -> None:
    """Else two projects' unchanged runs would replace each other's version, week by week."""
    first, second = make(59), make(60)
    promote(lenient, first)
    promote(lenient, second)
    for _ in range(2):
        verdict = promote(lenient, first)
        assert verdict.outcome == "replaced" and not verdict.passed
        assert verdict.in_words("v1").splitlines() == [
            "v1 is not promoted again",
            "  - v2 has replaced it",
            "  - `firstkd promote --version 1` puts it through the gate again",
        ]
    assert aliases(lenient) == {"champion": "2"}
    assert promote(lenient, first, again=True).passed


def test_older_state_is_judged_against_todays_champion(lenient: Project, make: Make) -> None:
    first, second = make(50), make(60)
    promote(lenient, first)
    promote(lenient, second)
    verdict = promote(lenient, first, again=True)
    assert verdict.outcome == "rejected"
    assert verdict.reasons[0].startswith("accuracy -0.100 [")
    assert "against champion v2's 0.600" in verdict.reasons[0]
    stands = standing(lenient, lenient.client.get_model_version(first.name, str(first.version)))
    assert stands == verdict
    rollback(lenient)  # to the very one that was just rejected
    reloaded = lenient.client.get_model_version(first.name, str(first.version))
    assert promote(lenient, reloaded).outcome == "in charge"


def test_other_limits_or_another_champion_reopen_a_rejection(lenient: Project, make: Make) -> None:
    promote(lenient, make(60))
    second = make(50)
    assert not promote(lenient, second).passed
    assert promote(with_limits(lenient, max_accuracy_drop=0.2), second).passed


def test_other_test_questions_are_refused_and_what_is_asked_for_passes(
    lenient: Project, make: Make
) -> None:
    promote(lenient, make(50, test="old"))
    second = make(90, test="new")
    verdict = promote(lenient, second)
    assert verdict.reasons[0].startswith("champion v1 was tested on other questions")
    assert judge(lenient, second, champion=None)[0].passed
    assert aliases(lenient)["champion"] == "1"  # judging moves nothing
    assert promote(lenient, second, compared=False, again=True).passed
    assert rollback(lenient) == ("2", "1")


@pytest.mark.parametrize("call", range(7))
def test_crash_at_any_write_leaves_a_champion_that_passed(
    lenient: Project,
    tracking: Tracking,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    call: int,
) -> None:
    promote(lenient, make(50))
    second = make(60)
    with crash_at(call, tracking, monkeypatch):
        promote(lenient, second)
    expected = "2" if call >= 6 else "1"  # the alias is the sixth write
    assert aliases(lenient)["champion"] == expected
    verdict = promote(lenient, second)
    assert verdict.passed and "accuracy +0.100" in verdict.in_words("v2")
    assert aliases(lenient)["champion"] == "2"
    assert rollback(lenient) == ("2", "1")


@pytest.mark.parametrize("call", range(8))
@pytest.mark.parametrize("before", ["rejected", "rolled back"])
def test_crash_on_the_way_from_an_earlier_decision_is_taken_up(
    lenient: Project,
    tracking: Tracking,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    before: str,
    call: int,
) -> None:
    promote(lenient, make(50))
    second = make(60)
    if before == "rolled back":
        promote(lenient, second)
        rollback(lenient)
    else:  # what stands in the way is removed afterwards
        number, client = str(second.version), tracking.client
        client.set_model_version_tag(second.name, number, NOT_REPRODUCIBLE_TAG, "uncommitted")
        lenient = with_limits(lenient, require_reproducible=True)
        assert not promote(lenient, second).passed
        client.delete_model_version_tag(second.name, number, NOT_REPRODUCIBLE_TAG)
    with crash_at(call, tracking, monkeypatch):
        promote(lenient, second, again=True)
    if before == "rolled back" and call < 2:  # only the file was written: it stays so
        assert promote(lenient, second).outcome == "rolled back"
        return
    assert promote(lenient, second).passed
    assert aliases(lenient)["champion"] == "2"
    assert rollback(lenient) == ("2", "1")


def test_a_rollback_that_was_interrupted_has_not_happened(
    lenient: Project,
    tracking: Tracking,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    promote(lenient, make(50))
    second = make(60)
    promote(lenient, second)
    with crash_at(2, tracking, monkeypatch):  # marked, but the alias has not moved
        rollback(lenient)
    assert aliases(lenient)["champion"] == "2"
    verdict = promote(lenient, second)
    assert verdict.outcome == "in charge" and "rollback was interrupted" in verdict.in_words("v2")
    assert rollback(lenient) == ("2", "1")


@contextmanager
def crash_at(call: int, tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let so many writes through, and interrupt at the next."""
    count = 0

    def failing(write: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*arguments: object) -> object:
            nonlocal count
            count += 1
            if count > call:
                raise KeyboardInterrupt
            return write(*arguments)

        return wrapped

    client = tracking.client
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        for name in WRITES:
            patch.setattr(client, name, failing(getattr(client, name)))
        yield


def test_nothing_waits_for_a_decision_that_takes_long_and_it_is_taken_again(
    lenient: Project,
    tracking: Tracking,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While the gate compares, a rollback and a promotion of another workspace go through."""
    for right in (40, 50):
        promote(lenient, make(right))
    second, third = make(60), make(80)
    decide, compared_with = promotion.decide, []

    def slowly(challenger: Evidence, champion: Evidence, limits: PromoteSettings) -> Verdict:
        compared_with.append(champion.version)
        if champion.version == "2" and challenger.version == "3":
            assert rollback(lenient) == ("2", "1")
            assert promote(lenient, third).passed
        return decide(challenger, champion, limits)

    monkeypatch.setattr(promotion, "decide", slowly)
    verdict = promote(lenient, second)
    assert compared_with == ["2", "1", "4"]
    assert verdict.outcome == "rejected" and "champion v4's 0.800" in verdict.in_words("v3")
    assert aliases(lenient)["champion"] == "4"


FIRSTKD = [sys.executable, "-c", "from flows.cli import main; main()"]


@pytest.mark.slow
@pytest.mark.parametrize("folders", [1, 2])
def test_two_promotions_at_once_cannot_both_win(
    project: Workspace,
    lenient: Project,
    tracking: Tracking,
    make: Make,
    tmp_path: Path,
    folders: int,
) -> None:
    """Each is better than the champion, and neither may follow the other."""
    for key, limit in NOTHING_BUT_ACCURACY.items():
        change(project.root, "promote", key, limit)
    promote(lenient, make(50, elsewhere=50))
    make(60, elsewhere=50)
    make(50, elsewhere=60)
    other = project.root if folders == 1 else shutil.copytree(project.root, tmp_path / "other")
    both = [
        subprocess.Popen(
            [*FIRSTKD, "promote", "--version", number],
            cwd=root,
            env={
                "PATH": "/usr/bin:/bin",
                "PYTHONPATH": str(REPOSITORY),
                "MLFLOW_TRACKING_URI": tracking.uri,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for root, number in ((project.root, "2"), (other, "3"))
    ]
    said = [process.communicate(timeout=120) for process in both]
    assert sorted(process.returncode for process in both) == [0, 1], said
    champion = aliases(lenient)["champion"]
    loser = 0 if champion == "3" else 1
    assert both[1 - loser].returncode == 0
    assert f"champion v{champion}'s" in said[loser][0]


def test_uncommitted_changes_bar_promotion_until_they_are_committed(project: Workspace) -> None:
    root = project.root
    change(root, "promote", "require_reproducible", True)
    opened = open_project(root)
    (root / ".gitignore").write_text("/.dvc\n/data\n/logs\n/mlflow\n__pycache__/\n")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "all")
    (root / "notes.txt").write_text("")
    version = register(opened, record(opened).run_id)
    verdict = promote(opened, version)
    assert verdict.reasons[0].startswith(
        "it cannot be rebuilt: it was made with uncommitted changes (notes.txt)"
    )
    git(root, "add", ".")
    git(root, "commit", "-qm", "more")
    same = register(opened, "unused: it is registered")
    assert same.version == version.version and NOT_REPRODUCIBLE_TAG not in same.tags
    assert same.tags["git_commit"] == git(root, "rev-parse", "HEAD")
    assert promote(opened, same).outcome == "promoted"


def test_history_tells_all(project: Workspace, lenient: Project, make: Make) -> None:
    promote(lenient, make(60))
    promote(lenient, make(50))
    lines = firstkd(project.root, "history").stdout.splitlines()
    assert lines[0].startswith("v2") and lines[0].endswith("rejected")
    assert "accuracy -0.100" in lines[1]
    headline = next(line for line in lines if line.startswith("v1"))
    assert headline.endswith("promoted  [champion]")
