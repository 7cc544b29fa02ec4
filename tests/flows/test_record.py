import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from firstkd.errors import ArtifactError, ConfigError, PipelineError
from firstkd.settings import Settings, load_settings
from flows import registry
from flows.curves import LiveRun
from flows.record import LOCK_TAG, Recorded, flatten, record
from flows.registry import aliases, register, versions
from flows.tracking import Tracking, open_tracking
from flows.workspace import Workspace
from tests.flows.projects import Quiet


@pytest.fixture
def settings(project: Workspace) -> Settings:
    return load_settings(project.root / "params.yaml")


@pytest.fixture
def tracking(project: Workspace, settings: Settings) -> Tracking:
    return open_tracking(project.root, settings.record)


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


def test_a_password_in_params_yaml_is_refused(project: Workspace, settings: Settings) -> None:
    uri = "postgresql://someone:secret@127.0.0.1/mlflow"
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI instead") as refused:
        open_tracking(project.root, settings.record.model_copy(update={"tracking_uri": uri}))
    assert "secret" not in str(refused.value)


def test_record_holds_what_was_made(
    project: Workspace, settings: Settings, tracking: Tracking
) -> None:
    recorded = record(project, settings, tracking, "flow-run-1")
    assert recorded.is_new
    assert names(tracking) == WHOLE
    client = tracking.client
    run = client.get_run(recorded.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["dvc_lock_sha256"] == project.lock_digest()
    assert run.data.tags["prefect_flow_run_id"] == "flow-run-1"
    assert run.data.tags["output/data/model/teacher"].endswith(".dir")
    assert run.data.metrics["sets/test/calibrated/ece"] == 0.05
    assert run.data.metrics["sets/test/calibrated/ece/high"] == 0.1
    assert {path.path for path in client.list_artifacts(recorded.run_id)} == {
        "dvc.lock",
        "params.yaml",
        "evaluation",
        "report",
    }
    lineage = {(found.dataset.name, found.tags[0].value) for found in run.inputs.dataset_inputs}
    assert {("train", "training"), ("openbookqa", "testing")} <= lineage
    assert (project.root / "mlflow" / "artifacts").is_dir()

    [distill] = client.search_runs([tracking.experiment_id], "tags.stage = 'model-first'")
    assert distill.data.tags["mlflow.parentRunId"] == recorded.run_id
    assert distill.data.params["train.distill.epochs"] == "4"
    assert distill.data.metrics["cost/tokens_per_second"] == 400
    assert distill.info.end_time - distill.info.start_time == 12_500
    steps = [point.step for point in client.get_metric_history(distill.info.run_id, "loss")]
    assert steps == [0, 1, 2, 3]


def test_same_state_is_recorded_and_registered_once(
    project: Workspace, settings: Settings, tracking: Tracking
) -> None:
    first = record(project, settings, tracking)
    version = register(project, settings, tracking, first.run_id)
    assert record(project, settings, tracking) == Recorded(first.run_id, is_new=False)
    assert register(project, settings, tracking, first.run_id).version == version.version
    assert names(tracking) == WHOLE
    assert version.tags["test_accuracy"] == "0.6667"
    assert aliases(tracking, version.name) == {"challenger": str(version.version)}


def test_what_another_repro_changes_meanwhile_is_not_recorded(
    project: Workspace, settings: Settings, tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = project.root / "data/model/first/model.safetensors"
    log_inputs, log_model = tracking.client.log_inputs, registry._log_model
    shutil.rmtree(project.root / "data/model/teacher")
    with pytest.raises(ArtifactError, match=r"data/model/teacher is missing"):
        record(project, settings, tracking)
    project.restore(Quiet())

    def disturbed(*arguments: Any) -> None:
        log_inputs(*arguments)
        model.write_bytes(b"others")

    with monkeypatch.context() as patch, pytest.raises(PipelineError, match="were changed while"):
        patch.setattr(tracking.client, "log_inputs", disturbed)
        record(project, settings, tracking)
    project.restore(Quiet())
    run_id = record(project, settings, tracking).run_id
    assert names(tracking) == WHOLE

    def disturbed_too(*arguments: Any) -> Any:
        model.write_bytes(b"others")
        return log_model(*arguments)

    with monkeypatch.context() as patch, pytest.raises(PipelineError, match="were changed while"):
        patch.setattr(registry, "_log_model", disturbed_too)
        register(project, settings, tracking, run_id)
    assert versions(tracking, settings.record.registered_model) == []


def test_a_request_that_was_repeated_leaves_one_version(
    project: Workspace,
    settings: Settings,
    tracking: Tracking,
    lost_answer: Callable[[MlflowClient, str], None],
) -> None:
    lost_answer(tracking.client, "create_model_version")
    version = register(project, settings, tracking, record(project, settings, tracking).run_id)
    assert [str(found.version) for found in versions(tracking, version.name)] == ["1"]
    assert aliases(tracking, version.name) == {"challenger": "1"}


def test_another_workspace_with_the_same_state_is_left_at_work_and_registers_it_once(
    project: Workspace,
    settings: Settings,
    tracking: Tracking,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = Workspace(shutil.copytree(project.root, tmp_path / "other"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tracking.client, "log_inputs", interrupted)
        record(project, settings, tracking)  # it is still at work
    [first] = tracking.client.search_runs([tracking.experiment_id], f"tags.{LOCK_TAG} LIKE '%'")
    second = record(other, settings, tracking)
    assert second.is_new
    assert tracking.client.get_run(first.info.run_id).info.lifecycle_stage == "active"
    log_model = registry._log_model

    def overtaken(*arguments: object) -> object:
        monkeypatch.setattr(registry, "_log_model", log_model)
        register(other, settings, tracking, second.run_id)
        return log_model(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(registry, "_log_model", overtaken)
    version = register(project, settings, tracking, first.info.run_id)
    assert version.run_id == second.run_id
    assert [str(found.version) for found in versions(tracking, version.name)] == ["1"]


def test_interrupted_record_is_replaced(
    project: Workspace, settings: Settings, tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tracking.client, "log_inputs", interrupted)
        record(project, settings, tracking)
    [first] = tracking.client.search_runs([tracking.experiment_id], f"tags.{LOCK_TAG} LIKE '%'")
    second = record(project, settings, tracking)
    assert second.is_new and second.run_id != first.info.run_id
    assert names(tracking) == WHOLE


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_registered_model_carries_code_files_and_pins(
    project: Workspace, settings: Settings, tracking: Tracking
) -> None:
    run_id = record(project, settings, tracking).run_id
    version = register(project, settings, tracking, run_id)
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


def test_live_curve_is_mirrored_while_it_grows(
    project: Workspace, tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.curves.POLL_SECONDS", 0.05)
    curve = project.root / "logs" / "model-teacher" / "curve.jsonl"
    live = LiveRun(tracking, "flow-run-1", project.root / "logs/live-run")
    with live.follow("model-teacher", curve):
        curve.write_text('{"step": 0, "loss": 2.0}\n{"step": 1, "lo')  # begun anew
        deadline = time.monotonic() + 10
        while "model-teacher" not in names(tracking) and time.monotonic() < deadline:
            time.sleep(0.05)
        with curve.open("a") as file:
            file.write('ss": 1.0}\n')
    [run] = tracking.client.search_runs([tracking.experiment_id], "run_name = 'model-teacher'")
    history = tracking.client.get_metric_history(run.info.run_id, "loss")
    assert [point.value for point in history] == [2.0, 1.0]
    live.drop()
    assert names(tracking) == [] and not (project.root / "logs/live-run").exists()


def test_live_runs_of_a_killed_retraining_are_closed_by_the_next(
    project: Workspace, tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.curves.POLL_SECONDS", 0.05)
    curve, note = project.root / "logs/model-teacher/curve.jsonl", project.root / "logs/live-run"
    curve.unlink()
    killed = LiveRun(tracking, "flow-run-1", note)
    elsewhere = LiveRun(tracking, "flow-run-2", project.root / "logs/of-another-workspace")
    for live in (killed, elsewhere):
        with live.follow("model-teacher", curve), curve.open("a") as file:
            file.write('{"step": 0, "loss": 2.0}\n')
    LiveRun(tracking, "flow-run-3", note).close_killed()
    found = {
        (run.data.tags["prefect_flow_run_id"], run.info.run_name): run.info.status
        for run in tracking.client.search_runs([tracking.experiment_id])
    }
    assert found == {
        ("flow-run-1", "retrain (live)"): "KILLED",
        ("flow-run-1", "model-teacher"): "KILLED",
        ("flow-run-2", "retrain (live)"): "RUNNING",
        ("flow-run-2", "model-teacher"): "RUNNING",
    }


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
    assert flatten(values, "/") == {"ece": 1, "ece/low": 0, "ece/high": 2, "a/b": 3}


def test_other_state_is_a_run_of_its_own(
    project: Workspace, settings: Settings, tracking: Tracking
) -> None:
    first = record(project, settings, tracking)
    with (project.root / "dvc.lock").open("a") as file:
        file.write("\n")
    assert record(project, settings, tracking).run_id != first.run_id
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
