import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from sqlalchemy.engine import make_url

from firstkd.errors import ArtifactError, ConfigError, PipelineError
from firstkd.settings import Settings
from flows import registry
from flows.project import Project
from flows.record import LOCK_TAG, Recorded, flatten, record
from flows.registry import aliases, register, versions
from flows.tracking import Tracking, open_tracking
from flows.workspace import Workspace
from tasks.record_place import shown
from tests.flows.projects import Quiet, open_project


@pytest.fixture
def settings(opened_project: Project) -> Settings:
    return opened_project.settings


@pytest.fixture
def tracking(opened_project: Project) -> Tracking:
    return opened_project.tracking


def names(tracking: Tracking) -> list[str]:
    runs = tracking.client.search_runs([tracking.experiment_id])
    return sorted(run.info.run_name.split()[0] for run in runs)


WHOLE = ["evaluate-first", "model-first", "model-teacher", "prepare", "report", "retrain"]


def test_a_deleted_experiment_is_refused_before_anything_runs(
    project: Workspace, settings: Settings, tracking: Tracking
) -> None:
    tracking.client.delete_experiment(tracking.experiment_id)
    with pytest.raises(ConfigError, match=r"'firstkd' was deleted; bring it back with `mlflow"):
        open_tracking(project.root, settings.record)


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://someone:secret@127.0.0.1/mlflow",
        "postgresql://127.0.0.1/mlflow?user=someone&password=secret",
        "https://secret@127.0.0.1/",
    ],
)
def test_a_password_in_params_yaml_is_refused(
    project: Workspace, settings: Settings, uri: str
) -> None:
    assert "secret" not in shown(make_url(uri))
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI instead") as refused:
        open_tracking(project.root, settings.record.model_copy(update={"tracking_uri": uri}))
    assert "secret" not in str(refused.value)


def test_record_holds_what_was_made(
    project: Workspace, opened_project: Project, tracking: Tracking
) -> None:
    recorded = record(opened_project)
    assert recorded.is_new
    assert names(tracking) == WHOLE
    client = tracking.client
    run = client.get_run(recorded.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["dvc_lock_sha256"] == project.lock_digest()
    assert run.data.tags["output/data/prepare"].endswith(".dir")
    assert run.data.tags["output/data/model/teacher"].endswith(".dir")
    assert run.data.metrics["sets/test/calibrated/ece"] == 0.05
    assert run.data.metrics["sets/test/calibrated/ece/high"] == 0.1
    assert {path.path for path in client.list_artifacts(recorded.run_id)} == {
        "dvc.lock",
        "params.yaml",
        "evaluation",
        "report",
    }
    assert (project.root / "mlflow" / "artifacts").is_dir()

    [distill] = client.search_runs([tracking.experiment_id], "tags.stage = 'model-first'")
    assert distill.data.tags["mlflow.parentRunId"] == recorded.run_id
    assert distill.data.params["train.distill.epochs"] == "4"
    assert distill.data.metrics["cost/tokens_per_second"] == 400
    assert distill.info.end_time - distill.info.start_time == 12_500
    steps = [point.step for point in client.get_metric_history(distill.info.run_id, "loss")]
    assert steps == [0, 1, 2, 3]


@pytest.mark.parametrize("clock", [0, 4e9], ids=["1970", "2096"])
def test_a_stage_that_ran_by_a_wrong_clock_is_recorded(
    opened_project: Project, clock: float
) -> None:
    os.utime(opened_project.root / "logs/model-first/cost.json", (clock, clock))
    record(opened_project)
    assert names(opened_project.tracking) == WHOLE


def test_same_state_is_recorded_and_registered_once(
    project: Workspace, opened_project: Project, tracking: Tracking
) -> None:
    first = record(opened_project)
    version = register(opened_project, first.run_id)
    assert record(opened_project) == Recorded(first.run_id, is_new=False)
    assert register(opened_project, first.run_id).version == version.version
    assert names(tracking) == WHOLE
    assert version.tags["test_accuracy"] == "0.6667"
    assert aliases(opened_project) == {"challenger": str(version.version)}


def test_what_another_repro_changes_meanwhile_is_not_recorded(
    project: Workspace, opened_project: Project, tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = project.root / "data/model/first/model.safetensors"
    log_artifacts, log_model = tracking.client.log_artifacts, registry.log_model
    shutil.rmtree(project.root / "data/model/teacher")
    with pytest.raises(ArtifactError, match=r"data/model/teacher is missing"):
        record(opened_project)
    project.restore(Quiet())

    def disturbed(*arguments: Any) -> None:
        log_artifacts(*arguments)
        model.write_bytes(b"others")

    with monkeypatch.context() as patch, pytest.raises(PipelineError, match="were changed while"):
        patch.setattr(tracking.client, "log_artifacts", disturbed)
        record(opened_project)
    project.restore(Quiet())
    run_id = record(opened_project).run_id

    def disturbed_too(*arguments: Any) -> Any:
        model.write_bytes(b"others")
        return log_model(*arguments)

    with monkeypatch.context() as patch, pytest.raises(PipelineError, match="were changed while"):
        patch.setattr(registry, "log_model", disturbed_too)
        register(opened_project, run_id)
    assert versions(opened_project) == []


def test_a_request_that_was_repeated_leaves_one_version(
    project: Workspace,
    opened_project: Project,
    tracking: Tracking,
    lost_answer: Callable[[MlflowClient, str], None],
) -> None:
    lost_answer(tracking.client, "create_model_version")
    register(opened_project, record(opened_project).run_id)
    assert [str(found.version) for found in versions(opened_project)] == ["1"]
    assert aliases(opened_project) == {"challenger": "1"}


def test_another_workspace_with_the_same_state_is_left_at_work_and_registers_it_once(
    project: Workspace,
    opened_project: Project,
    tracking: Tracking,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.uri)
    other = open_project(shutil.copytree(project.root, tmp_path / "other"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tracking.client, "log_artifacts", interrupted)
        record(opened_project)  # it is still at work
    [first] = tracking.client.search_runs([tracking.experiment_id], f"tags.{LOCK_TAG} LIKE '%'")
    second = record(other)
    assert second.is_new
    assert tracking.client.get_run(first.info.run_id).info.lifecycle_stage == "active"
    log_model = registry.log_model

    def overtaken(*arguments: object) -> object:
        monkeypatch.setattr(registry, "log_model", log_model)
        register(other, second.run_id)
        return log_model(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(registry, "log_model", overtaken)
    version = register(opened_project, first.info.run_id)
    assert version.run_id == second.run_id
    assert [str(found.version) for found in versions(opened_project)] == ["1"]


def test_interrupted_record_is_marked_as_killed_by_the_next(
    project: Workspace, opened_project: Project, tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tracking.client, "log_artifacts", interrupted)
        record(opened_project)
    [first] = tracking.client.search_runs([tracking.experiment_id], f"tags.{LOCK_TAG} LIKE '%'")
    second = record(opened_project)
    assert second.is_new and second.run_id != first.info.run_id
    found = tracking.client.search_runs([tracking.experiment_id])
    states = {run.info.run_id: run.info.status for run in found}
    assert states.pop(first.info.run_id) == "KILLED"
    assert set(states.values()) == {"FINISHED"} and len(states) == len(WHOLE)


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_registered_model_carries_code_files_and_pins(
    project: Workspace, opened_project: Project, settings: Settings, tracking: Tracking
) -> None:
    run_id = record(opened_project).run_id
    version = register(opened_project, run_id)
    folder = Path(
        tracking.client.get_model_version_download_uri(version.name, str(version.version))
        .removeprefix("file://")
    )  # fmt: skip
    assert (folder / "artifacts" / "first" / "model.safetensors").exists()
    assert (folder / "artifacts" / "calibration.json").exists()
    assert (folder / "code" / "firstkd" / "settings.py").exists()
    requirements = (folder / "requirements.txt").read_text()
    assert "torch==" in requirements and "+" not in requirements
    assert not list(folder.rglob("*.pkl"))


def test_unreachable_server_is_one_error_that_names_it(
    tmp_path: Path, project: Workspace, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(PipelineError, match=r"MLflow at http://user:\*\*\*@127.0.0.1:9 ") as error:
        open_tracking(project.root, settings.record)
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


def test_numbers_with_intervals_keep_the_bare_name() -> None:
    values = {"ece": {"value": 1, "low": 0, "high": 2}, "a": {"b": 3}}
    assert flatten(values) == {"ece": 1, "ece/low": 0, "ece/high": 2, "a/b": 3}


def test_other_state_is_a_run_of_its_own(
    project: Workspace, opened_project: Project, tracking: Tracking
) -> None:
    first = record(opened_project)
    with (project.root / "dvc.lock").open("a") as file:
        file.write("\n")
    assert record(opened_project).run_id != first.run_id
    assert len(names(tracking)) == 2 * len(WHOLE)


def test_settings_cannot_have_the_record_written_outside_the_project(
    project: Workspace, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for uri in (f"sqlite:///{tmp_path}/elsewhere/mlflow.db", "sqlite:///../elsewhere/mlflow.db"):
        outside = settings.record.model_copy(update={"tracking_uri": uri})
        with pytest.raises(ConfigError, match=r"^record.tracking_uri: .* is outside"):
            open_tracking(project.root, outside)
        assert not (tmp_path / "elsewhere").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # whoever starts it may
    monkeypatch.chdir(project.root)
    open_tracking(project.root, settings.record)
    assert (tmp_path / "elsewhere/mlflow.db").exists()
