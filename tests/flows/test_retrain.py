import os
import time
from typing import Any

import pytest
from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter, LogFilter
from prefect.client.schemas.objects import FlowRun, TaskRun

from firstkd.errors import PipelineError
from flows.dvc import Outcome, StageError, WorkspaceBusyError
from flows.retrain import Retrained, retrain
from flows.workspace import Workspace
from tests.flows.projects import change

pytestmark = pytest.mark.usefixtures("prefect_server")

STAGES = ["prepare", "model-teacher", "model-first", "evaluate-first", "report"]


def last_run() -> tuple[FlowRun, dict[str, TaskRun]]:
    """Return the newest flow run, and its task runs by name."""
    with get_client(sync_client=True) as client:
        [run] = client.read_flow_runs(limit=1, sort="START_TIME_DESC")
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id={"any_": [run.id]}))
    return run, {found.name: found for found in tasks}


def state(task: TaskRun) -> str:
    assert task.state is not None
    return task.state.name


def test_first_run_promotes_the_second_finds_nothing_to_do(project: Workspace) -> None:
    first: Retrained = retrain(str(project.root))
    concluded = first.concluded
    assert concluded.recorded.is_new and concluded.verdict.passed and concluded.champion == "1"
    run, tasks = last_run()
    assert sorted(tasks) == sorted([*STAGES, "record", "register", "promote", "publish"])
    assert {state(tasks[stage]) for stage in STAGES} == {"Unchanged"}  # the fixture had run them
    assert artifacts(run) == {"results"}

    second: Retrained = retrain(str(project.root))
    assert set(second.outcomes.values()) == {Outcome.UNCHANGED}
    again = second.concluded
    assert not again.recorded.is_new
    assert again.verdict.outcome == "in charge" and again.champion == "1"
    assert again.verdict.reasons == concluded.verdict.reasons


def test_worse_student_is_registered_but_not_promoted(project: Workspace) -> None:
    retrain(str(project.root))
    change(project.root, "train.distill", "epochs", 2)
    worse: Retrained = retrain(str(project.root))
    assert worse.outcomes["model-teacher"] is Outcome.UNCHANGED
    assert worse.outcomes["model-first"] is Outcome.RAN
    concluded = worse.concluded
    assert str(concluded.version.version) == "2" and concluded.champion == "1"
    assert not concluded.verdict.passed
    run, tasks = last_run()
    assert state(tasks["model-teacher"]) == "Unchanged"
    assert state(tasks["model-first"]) == "Completed"
    assert run.state is not None and run.state.name == "Completed"
    logs = eventually_logs(tasks["model-first"])
    assert "INFO model-first: trained" in logs
    assert "100%|##" in logs


def test_failed_stage_fails_the_run_with_its_own_message(project: Workspace) -> None:
    change(project.root, "train.finetune", "epochs", 13)
    with pytest.raises(StageError, match=r"^model: thirteen epochs are too many$"):
        retrain(str(project.root))
    run, tasks = last_run()
    assert state(tasks["prepare"]) == "Unchanged"
    assert state(tasks["model-teacher"]) == "Failed"
    assert "model-first" not in tasks
    assert run.state is not None and run.state.is_failed()


def test_stage_over_its_time_is_ended(project: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.root / "pipeline.py").write_text("import time\ntime.sleep(60)\n")
    change(project.root, "train.finetune", "epochs", 9)
    monkeypatch.setattr("flows.retrain.SECONDS_PER_MINUTE", 3 / 720)
    with pytest.raises(PipelineError, match=r"^model-teacher took longer than"):
        retrain(str(project.root))
    assert state(last_run()[1]["model-teacher"]) == "TimedOut"


def test_second_retraining_in_one_workspace_is_refused(project: Workspace) -> None:
    with project.exclusive(), pytest.raises(WorkspaceBusyError, match=str(os.getpid())):
        retrain(str(project.root))


def test_dead_tracking_server_is_found_before_the_first_stage(
    project: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(PipelineError, match=r"MLflow at http://127.0.0.1:9 does not answer"):
        retrain(str(project.root))
    assert last_run()[1] == {}


def artifacts(run: FlowRun) -> set[str]:
    from prefect.client.schemas.filters import ArtifactFilter

    with get_client(sync_client=True) as client:
        found: list[Any] = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id={"any_": [run.id]})
        )
    return {artifact.key for artifact in found}


def eventually_logs(task: TaskRun) -> list[str]:
    """Return a task's log; Prefect sends it in batches, in the background."""
    with get_client(sync_client=True) as client:
        for _ in range(100):
            logs = client.read_logs(LogFilter(task_run_id={"any_": [task.id]}), limit=200)
            messages = [log.message for log in logs]
            if any(message.startswith("Finished in state") for message in messages):
                return messages
            time.sleep(0.1)
    raise AssertionError(f"the log of {task.name} never came")
