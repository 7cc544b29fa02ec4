"""Write what the pipeline made into MLflow: one run per retraining with a child run per stage.

Everything is read from files (dvc.lock, params.yaml, data/, logs/), since DVC may have restored a
stage instead of running it. The SHA-256 of dvc.lock identifies a retraining: what is recorded is
not recorded again.
"""

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.data.pandas_dataset import from_pandas
from mlflow.entities import DatasetInput, InputTag, Metric, Param, Run
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_PARENT_RUN_ID

from firstkd.errors import ArtifactError
from firstkd.files import atomic_file, read_json, sha256_of
from firstkd.settings import Settings
from flows.curves import curve_metrics, log_metrics
from flows.tracking import Tracking
from flows.workspace import Workspace
from tasks.evaluated import teacher_name

LOCK_TAG = "dvc_lock_sha256"
COMPLETE_TAG = "recorded"
"""Set last: a run without it is being written, or was interrupted."""
ATTEMPT_TAG = "record_attempt"

NUMBERS = ("metrics.json", "summary.json")
SMALL_FILES = {".json", ".png", ".html"}
SMALL_BYTES = 2**20
PARAMS_PER_CALL = 100
CONTEXTS = {"train": "training", "calibration": "calibration"}


@dataclass(frozen=True)
class Recorded:
    run_id: str
    is_new: bool


def record(
    workspace: Workspace, settings: Settings, tracking: Tracking, flow_run_id: str = "none"
) -> Recorded:
    """Record the workspace's present state, unless that was done before.

    What an interrupted attempt of this workspace has left is removed; another workspace may be
    recording the same state. Raises PipelineError where another `dvc repro` came in between.
    """
    digest, client = workspace.lock_digest(), tracking.client
    attempt_file = workspace.root / "logs" / "record-attempt"
    if attempt_file.exists():
        _remove_interrupted(tracking, attempt_file.read_text())
    for run in _runs(tracking, f"tags.{LOCK_TAG} = '{digest}'"):
        if COMPLETE_TAG in run.data.tags:
            return Recorded(run.info.run_id, is_new=False)

    attempt = uuid.uuid4().hex
    with atomic_file(attempt_file) as file:
        file.write_text(attempt)
    tags = {
        **_identity(workspace),
        LOCK_TAG: digest,
        ATTEMPT_TAG: attempt,
        "prefect_flow_run_id": flow_run_id,
    }
    run_id = client.create_run(
        tracking.experiment_id, run_name=f"retrain {digest[:8]}", tags=tags
    ).info.run_id
    with ThreadPoolExecutor() as pool:
        stages = pool.submit(workspace.stages)  # DVC takes as long as what comes first here
        _record_whole(workspace.root, settings, tracking, run_id)
    lock = workspace.lock()  # which keeps the entries of stages that are no more
    for stage in stages.result():
        _record_stage(workspace.root, tracking, run_id, stage, lock[stage])
    workspace.check_unchanged(digest)
    client.set_terminated(run_id)
    client.set_tag(run_id, COMPLETE_TAG, "true")
    attempt_file.unlink()
    return Recorded(run_id, is_new=True)


def _remove_interrupted(tracking: Tracking, attempt: str) -> None:
    for run in _runs(tracking, f"tags.{ATTEMPT_TAG} = '{attempt}'"):
        if COMPLETE_TAG in run.data.tags:
            continue
        for child in _runs(tracking, f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run.info.run_id}'"):
            tracking.client.delete_run(child.info.run_id)
        tracking.client.delete_run(run.info.run_id)


def _runs(tracking: Tracking, condition: str) -> list[Run]:
    return list(tracking.client.search_runs([tracking.experiment_id], condition))


def _identity(workspace: Workspace) -> dict[str, str]:
    """Return the tags that say what exactly was made, and from which code."""
    git = workspace.git()
    hashes = {
        f"output/{out['path']}": out["md5"]
        for entry in workspace.lock().values()
        for out in entry.get("outs", [])
    }
    return {"git_commit": git.commit or "none", "git_dirty": str(git.dirty).lower(), **hashes}


def _record_stage(
    root: Path, tracking: Tracking, parent: str, stage: str, entry: dict[str, Any]
) -> None:
    client = tracking.client
    cost_file = root / "logs" / stage / "cost.json"
    cost = read_json(cost_file) if cost_file.exists() else {}
    end = int((cost_file.stat().st_mtime if cost else time.time()) * 1000)
    start = end - int(cost.get("seconds", 0) * 1000)
    tags = {MLFLOW_PARENT_RUN_ID: parent, "stage": stage}
    run_id = client.create_run(
        tracking.experiment_id, run_name=stage, start_time=start, tags=tags
    ).info.run_id

    settings = entry.get("params", {}).get("params.yaml", {})
    params = [Param(key, str(value)) for key, value in flatten(settings, ".").items()]
    for first in range(0, len(params), PARAMS_PER_CALL):
        client.log_batch(run_id, params=params[first : first + PARAMS_PER_CALL])

    numbers = flatten({"cost": cost}, "/")
    for file in _files(root, entry):
        if file.name in NUMBERS:
            numbers |= flatten(read_json(file), "/")
        if file.name == "training.jsonl":
            log_metrics(tracking, run_id, curve_metrics(file.read_text().splitlines()))
        if file.suffix in SMALL_FILES and file.stat().st_size <= SMALL_BYTES:
            client.log_artifact(run_id, str(file))
    log_metrics(tracking, run_id, metrics_of(numbers))
    client.set_terminated(run_id, end_time=end)


def _record_whole(root: Path, settings: Settings, tracking: Tracking, run_id: str) -> None:
    """Log what concerns the retraining as a whole: its identity, evidence, report and data."""
    client = tracking.client
    for name in ("dvc.lock", "params.yaml"):
        client.log_artifact(run_id, str(root / name))
    evaluation = root / "data" / "evaluate" / settings.record.student
    for name in ("metrics.json", "predictions.parquet", "calibration.json"):
        client.log_artifact(run_id, str(evaluation / name), "evaluation")
    if teacher := teacher_name(settings):  # the gate asks how much of its accuracy is kept
        found = read_json(root / "data" / "evaluate" / teacher / "metrics.json")["sets"]["test"]
        accuracy = found["raw"]["accuracy"]["value"]
        client.log_dict(run_id, {"name": teacher, "accuracy": accuracy}, "evaluation/teacher.json")
    client.log_artifacts(run_id, str(root / "data" / "report"), "report")
    log_metrics(tracking, run_id, metrics_of(flatten(read_json(evaluation / "metrics.json"), "/")))
    client.log_inputs(
        run_id, [_dataset(root, path) for path in sorted((root / "data/prepare").glob("*.parquet"))]
    )


def _dataset(root: Path, path: Path) -> DatasetInput:
    dataset = from_pandas(
        pd.read_parquet(path),
        source=path.relative_to(root).as_posix(),
        name=path.stem,
        digest=sha256_of(path)[:32],  # MLflow's limit is 36 characters
    )
    tag = InputTag(MLFLOW_DATASET_CONTEXT, CONTEXTS.get(path.stem, "testing"))
    return DatasetInput(dataset._to_mlflow_entity(), [tag])


def _files(root: Path, entry: dict[str, Any]) -> list[Path]:
    """Return the files that a stage put at the top of its outputs.

    Raises ArtifactError when an output is gone.
    """
    outs = [root / out["path"] for out in entry.get("outs", [])]
    if gone := [out for out in outs if not out.exists()]:
        raise ArtifactError(f"{gone[0]} is missing: run `firstkd run`, which makes it again")
    inside = [file for out in outs if out.is_dir() for file in sorted(out.iterdir())]
    return [file for file in [*outs, *inside] if file.is_file()]


def flatten(values: Any, separator: str, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with joined keys.

    A number with its interval ({"value", "low", "high"}) keeps the bare key for the value.
    """
    if not isinstance(values, dict):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        joined = f"{prefix}{separator}{key}" if prefix else str(key)
        if key == "value" and {"low", "high"} <= values.keys():
            joined = prefix
        flat |= flatten(value, separator, joined)
    return flat


def metrics_of(numbers: dict[str, Any]) -> list[Metric]:
    now = int(time.time() * 1000)
    return [
        Metric(name, float(value), now, 0)
        for name, value in numbers.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
