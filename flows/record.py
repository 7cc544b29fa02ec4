"""Record what the pipeline made in MLflow: one run per retraining, with a child run per stage.

Everything is read from files (dvc.lock, params.yaml, data/, logs/), since DVC may have restored a
stage instead of running it. The SHA-256 of dvc.lock identifies a retraining, so that none is
recorded twice. A run is complete once its status is FINISHED.
"""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from firstkd.errors import ArtifactError
from firstkd.files import read_json
from firstkd.git import git_state
from flows.project import Project
from flows.tracking import Tracking
from flows.workspace import Workspace
from tasks.evaluated import teacher_name
from tasks.kept import kept
from tasks.layout import evaluation_folder

LOCK_TAG = "dvc_lock_sha256"
WORKSPACE_TAG = "workspace"
"""The workspace of a run; a retraining closes the runs that killed ones left open in it."""

NUMBERS = ("metrics.json", "summary.json")
SMALL_FILES = {".json", ".png", ".html"}
SMALL_BYTES = 2**20
PARAMS_PER_CALL, METRICS_PER_CALL = 100, 1000


@dataclass(frozen=True)
class Recorded:
    run_id: str
    is_new: bool


def record(project: Project) -> Recorded:
    """Record the workspace's current state, unless it is already recorded.

    Hold the workspace: its open runs are assumed to belong to killed retrainings. Raises
    PipelineError if another `dvc repro` changes the results meanwhile.
    """
    client, workspace = project.client, project.workspace
    digest, own = workspace.lock_digest(), {WORKSPACE_TAG: workspace.place}
    _close_killed(project)
    if found := recorded_runs(project.tracking, digest):
        return Recorded(found[0], is_new=False)

    tags = {**_identity(workspace), LOCK_TAG: digest, **own}
    run_id = _new_run(project, f"retrain {digest[:8]}", tags)
    _record_whole(project, run_id)
    lock = workspace.lock()  # also has the entries of stages that are gone
    for stage in workspace.stages():
        tags = {MLFLOW_PARENT_RUN_ID: run_id, "stage": stage, **own}
        _record_stage(project, tags, lock[stage])
    workspace.check_unchanged(digest)
    client.set_terminated(run_id)
    return Recorded(run_id, is_new=True)


def record_evaluation(project: Project, name: str, tags: dict[str, str], evaluation: Path) -> str:
    """Record a version's evaluation without a retraining; return the run's id.

    Hold the workspace, as for `record`.
    """
    _close_killed(project)
    run_id = _new_run(project, name, {**tags, WORKSPACE_TAG: project.workspace.place})
    project.client.log_artifacts(run_id, str(evaluation), "evaluation")
    _log(project.client, run_id, list(metrics_of(flatten(read_json(evaluation / "metrics.json")))))
    project.client.set_terminated(run_id)
    return run_id


def _close_killed(project: Project) -> None:
    for run_id in _runs(project.tracking, WORKSPACE_TAG, project.workspace.place, "RUNNING"):
        project.client.set_terminated(run_id, "KILLED")


def recorded_runs(tracking: Tracking, digest: str) -> list[str]:
    """Return the ids of the complete runs that record a dvc.lock."""
    return _runs(tracking, LOCK_TAG, digest, "FINISHED")


def _runs(tracking: Tracking, tag: str, value: str, status: str) -> list[str]:
    condition = f"tags.{tag} = '{value}' and attributes.status = '{status}'"
    found = tracking.client.search_runs([tracking.experiment_id], condition)
    return [run.info.run_id for run in found]


def _new_run(project: Project, name: str, tags: dict[str, str], start: int | None = None) -> str:
    experiment = project.tracking.experiment_id
    run = project.client.create_run(experiment, run_name=name, tags=tags, start_time=start)
    return str(run.info.run_id)


def _identity(workspace: Workspace) -> dict[str, str]:
    """Return the tags that say exactly what was made, and from which code."""
    git = git_state(workspace.root)
    hashes = {
        f"output/{out['path']}": out["md5"]
        for entry in workspace.lock().values()
        for out in entry.get("outs", [])
    }
    dirty = str(git.problem is not None).lower()
    return {"git_commit": git.commit or "none", "git_dirty": dirty, **hashes}


def _record_stage(project: Project, tags: dict[str, str], entry: dict[str, Any]) -> None:
    client, stage = project.client, tags["stage"]
    cost_file = project.root / "logs" / stage / "cost.json"
    cost = read_json(cost_file) if cost_file.exists() else {}
    end = int((cost_file.stat().st_mtime if cost else time.time()) * 1000)
    start = max(0, end - int(cost.get("seconds", 0) * 1000))  # if a clock stood at 1970
    run_id = _new_run(project, stage, tags, start)
    settings = entry.get("params", {}).get("params.yaml", {})
    [flat] = pd.json_normalize([settings]).to_dict("records")
    params = [Param(str(key), str(value)) for key, value in flat.items()]
    for first in range(0, len(params), PARAMS_PER_CALL):
        client.log_batch(run_id, params=params[first : first + PARAMS_PER_CALL])

    metrics = list(metrics_of(flatten({"cost": cost})))
    for file in _files(project.root, entry):
        if file.name in NUMBERS:
            metrics += metrics_of(flatten(read_json(file)))
        if file.name == "training.jsonl":
            for line in file.read_text(encoding="utf-8").splitlines():
                point = json.loads(line)
                metrics += metrics_of(point, point.pop("step"))
        if file.suffix in SMALL_FILES and file.stat().st_size <= SMALL_BYTES:
            client.log_artifact(run_id, str(file))
    _log(client, run_id, metrics)
    client.set_terminated(run_id, end_time=end)


def _record_whole(project: Project, run_id: str) -> None:
    """Log what concerns the retraining as a whole: its identity, evidence and report."""
    client, root = project.client, project.root
    for name in ("dvc.lock", "params.yaml"):
        client.log_artifact(run_id, str(root / name))
    for place, path in kept(root, project.settings).items():
        client.log_artifact(run_id, str(path), str(PurePosixPath(place).parent))
    if teacher := teacher_name(project.settings):  # the gate asks how much of its accuracy is kept
        found = read_json(evaluation_folder(root, teacher) / "metrics.json")["sets"]["test"]
        accuracy = found["raw"]["accuracy"]["value"]
        client.log_dict(run_id, {"name": teacher, "accuracy": accuracy}, "evaluation/teacher.json")
    client.log_artifacts(run_id, str(root / "data" / "report"), "report")
    measured = flatten(read_json(root / project.student.evaluation / "metrics.json"))
    _log(client, run_id, list(metrics_of(measured)))


def _log(client: MlflowClient, run_id: str, metrics: list[Metric]) -> None:
    for start in range(0, len(metrics), METRICS_PER_CALL):
        client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_CALL])


def _files(root: Path, entry: dict[str, Any]) -> list[Path]:
    """Return the files at the top level of a stage's outputs.

    Raises ArtifactError if an output is gone.
    """
    outs = [root / out["path"] for out in entry.get("outs", [])]
    if gone := [out for out in outs if not out.exists()]:
        raise ArtifactError(f"{gone[0]} is missing; run `firstkd run` to rebuild it")
    inside = [file for out in outs if out.is_dir() for file in sorted(out.iterdir())]
    return [file for file in [*outs, *inside] if file.is_file()]


def flatten(values: dict[str, Any]) -> dict[str, Any]:
    """Return nested numbers as one mapping, with joined keys.

    A number with its interval ({"value", "low", "high"}) keeps the bare key for the value.
    """
    [flat] = pd.json_normalize([values], sep="/").to_dict("records")
    return {str(key).removesuffix("/value"): value for key, value in flat.items()}


def metrics_of(numbers: Mapping[str, Any], step: int = 0) -> Iterator[Metric]:
    now = int(time.time() * 1000)
    for name, value in numbers.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield Metric(name, float(value), now, step)
