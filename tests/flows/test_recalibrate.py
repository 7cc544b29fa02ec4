"""Versions that recalibrate another, on a real registry: gate, crashes, rollback, no-op runs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.entities.model_registry import ModelVersion

from firstkd.errors import PipelineError
from firstkd.files import read_json
from flows.conclude import conclude
from flows.project import Project
from flows.promotion import promote, rollback
from flows.recalibrate import Recalibrated, register
from flows.registry import RECALIBRATES_TAG, aliases, get_version, student_files, versions
from flows.reproduce import reproduce
from tests.flows.projects import Quiet
from tests.flows.test_promotion import crash_at


@pytest.fixture
def first(opened_project: Project) -> ModelVersion:
    concluded = conclude(opened_project)
    assert concluded.champion == "1"
    return concluded.version


@pytest.fixture
def fitted(opened_project: Project, tmp_path: Path) -> Recalibrated:
    """What tasks/recalibrate.py would write, with another temperature."""
    root, student = opened_project.root, opened_project.student
    evaluation = Path(shutil.copytree(root / student.evaluation, tmp_path / "evaluation"))
    (evaluation / "calibration.json").write_text('{"temperature": 1.9}')
    metrics = read_json(evaluation / "metrics.json")
    metrics["recalibrated"] = {"questions": 80, "temperature_before": 2.0}
    (evaluation / "metrics.json").write_text(json.dumps({**metrics, "temperature": 1.9}))
    return Recalibrated(root / student.weights, evaluation)


def test_it_passes_the_gate_with_the_weights_it_had(
    opened_project: Project, first: ModelVersion, fitted: Recalibrated, tmp_path: Path
) -> None:
    new = register(opened_project, first, fitted)
    verdict = promote(opened_project, new)
    assert verdict.outcome == "promoted", verdict
    assert aliases(opened_project) == {"challenger": "2", "champion": "2"}
    assert new.tags[RECALIBRATES_TAG] == "1" and new.tags["student"] == "first"
    weights, calibration = student_files(opened_project.tracking, new, tmp_path / "scratch")
    assert read_json(calibration) == {"temperature": 1.9}
    before, _ = student_files(opened_project.tracking, first, tmp_path / "scratch")
    assert (weights / "model.safetensors").read_bytes() == (
        before / "model.safetensors"
    ).read_bytes()
    again = register(opened_project, new, fitted)  # of the version that it made, the same one
    assert again.version == new.version and len(versions(opened_project)) == 2
    with pytest.raises(PipelineError, match="v2 is v1 with a different calibration"):
        reproduce(opened_project, new, False, Quiet())


def test_a_run_without_news_does_not_undo_it(
    opened_project: Project, first: ModelVersion, fitted: Recalibrated
) -> None:
    promote(opened_project, register(opened_project, first, fitted))
    concluded = conclude(opened_project)
    assert concluded.champion == "2" and not concluded.recorded.is_new
    assert concluded.verdict.in_words("v1").splitlines() == [
        "v1 is already the champion",
        "  - v2 is v1, recalibrated",
    ]
    assert rollback(opened_project) == ("2", "1")
    assert conclude(opened_project).champion == "1"
    same = register(opened_project, first, fitted)
    assert promote(opened_project, same).outcome == "rolled back"


def test_the_gate_refuses_one_that_is_worse(
    opened_project: Project, first: ModelVersion, fitted: Recalibrated
) -> None:
    metrics = read_json(fitted.evaluation / "metrics.json")
    metrics["sets"]["test"]["calibrated"]["ece"]["value"] = 0.5
    (fitted.evaluation / "metrics.json").write_text(json.dumps(metrics))
    verdict = promote(opened_project, register(opened_project, first, fitted))
    assert verdict.outcome == "rejected" and verdict.reasons[0].startswith("ECE 0.500")
    assert aliases(opened_project)["champion"] == "1"


@pytest.mark.parametrize("call", range(9))
def test_crash_at_any_write_leaves_a_champion_and_the_next_attempt_goes_on(
    opened_project: Project,
    first: ModelVersion,
    fitted: Recalibrated,
    monkeypatch: pytest.MonkeyPatch,
    call: int,
) -> None:
    with crash_at(call, opened_project.tracking, monkeypatch):
        promote(opened_project, register(opened_project, first, fitted))
        raise KeyboardInterrupt  # fewer writes than that
    assert aliases(opened_project)["champion"] in ("1", "2")
    new = register(opened_project, get_version(opened_project, "champion"), fitted)
    assert promote(opened_project, new).passed
    assert aliases(opened_project)["champion"] == "2" and len(versions(opened_project)) == 2
    assert rollback(opened_project) == ("2", "1")


def test_a_killed_record_is_closed_by_the_next(
    opened_project: Project,
    first: ModelVersion,
    fitted: Recalibrated,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = opened_project.client

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(client, "set_terminated", killed)
        register(opened_project, first, replace(fitted))
    register(opened_project, first, fitted)
    runs = client.search_runs(
        [opened_project.tracking.experiment_id], f"tags.{RECALIBRATES_TAG} = '1'"
    )
    assert sorted(run.info.status for run in runs) == ["FINISHED", "KILLED"]
