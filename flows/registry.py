"""The registry of students: MLflow versions, their tags and aliases, and the evidence of each."""

from importlib.metadata import version as installed_version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities.model_registry import ModelVersion
from mlflow.models import ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array

import firstkd
from firstkd.files import read_json, sha256_of
from firstkd.settings import Settings
from flows.gate import Evidence
from flows.record import LOCK_TAG
from flows.tracking import Tracking
from flows.workspace import Workspace

CHALLENGER = "challenger"
SERVING_NEEDS = (
    "mlflow",
    "numpy",
    "pandas",
    "pydantic",
    "ruamel-yaml",
    "safetensors",
    "tokenizers",
    "torch",
    "tqdm",
    "transformers",
)
SIGNATURE = ModelSignature(
    inputs=Schema(
        [ColSpec(DataType.string, "question"), ColSpec(Array(DataType.string), "choices")]
    ),
    outputs=Schema([ColSpec(DataType.string, "answer"), ColSpec(DataType.double, "confidence")]),
)


def register(
    workspace: Workspace, settings: Settings, tracking: Tracking, run_id: str
) -> ModelVersion:
    """Return the registered version of the workspace's present student, made if need be.

    There is one version per dvc.lock; a new one gets the alias `challenger`.
    """
    if present := find_version(workspace, settings, tracking):
        return present
    name, digest = settings.record.registered_model, workspace.lock_digest()
    client = tracking.client
    tags = {LOCK_TAG: digest, **_tags(workspace, settings)}
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    with tracking.as_default():
        model = _log_model(workspace.root, settings, run_id)
        version = client.create_model_version(
            name, model.model_uri, run_id, tags, model_id=model.model_id
        )
    client.set_registered_model_alias(name, CHALLENGER, version.version)
    return version


def find_version(
    workspace: Workspace, settings: Settings, tracking: Tracking
) -> ModelVersion | None:
    """Return the version of the workspace's present student, if it is registered."""
    name, digest = settings.record.registered_model, workspace.lock_digest()
    condition = f"name = '{name}' and tags.{LOCK_TAG} = '{digest}'"
    return next(iter(tracking.client.search_model_versions(condition)), None)


def aliases(tracking: Tracking, name: str) -> dict[str, str]:
    """Return the version behind each alias; empty before the first registration."""
    models = tracking.client.search_registered_models(f"name = '{name}'")
    return {alias: str(number) for model in models for alias, number in model.aliases.items()}


def run_of(version: ModelVersion) -> str:
    """Return the id of the retraining's run that a version came from."""
    assert version.run_id is not None  # `register` always logs within a run
    return version.run_id


def load_evidence(tracking: Tracking, name: str, version: str) -> Evidence:
    """Return what the gate needs to know of a version, from what was recorded with it."""
    found = tracking.client.get_model_version(name, version)
    with TemporaryDirectory() as folder:
        local = Path(tracking.client.download_artifacts(run_of(found), "evaluation", folder))
        return Evidence(
            version=version,
            test_digest=found.tags["test_sha256"],
            sets=read_json(local / "metrics.json")["sets"],
            predictions=pd.read_parquet(local / "predictions.parquet"),
        )


def _log_model(root: Path, settings: Settings, run_id: str) -> ModelInfo:
    """Log the student as a model made from code and files."""
    evaluation = root / "data" / "evaluate" / settings.student_name
    with mlflow.start_run(run_id=run_id):
        model: ModelInfo = mlflow.pyfunc.log_model(
            name="student",
            python_model=str(Path(__file__).with_name("student_model.py")),
            artifacts={
                "student": str(root / "data" / "distill" / settings.record.arm),
                "calibration": str(evaluation / "calibration.json"),
            },
            code_paths=[str(Path(firstkd.__file__).parent)],
            pip_requirements=[_pinned(name) for name in SERVING_NEEDS],
            signature=SIGNATURE,
        )
    return model


def _pinned(name: str) -> str:
    public, _, _build = installed_version(name).partition("+")  # "+cpu" is on no index
    return f"{name}=={public}"


def _tags(workspace: Workspace, settings: Settings) -> dict[str, Any]:
    root, arm, git = workspace.root, settings.record.arm, workspace.git()
    evaluated = read_json(root / "data" / "evaluate" / settings.student_name / "metrics.json")
    headline = {
        f"{set_name}_{metric}": f"{values['calibrated'][metric]['value']:.4f}"
        for set_name, values in evaluated["sets"].items()
        for metric in ("accuracy", "ece", "trust")
    }
    return {
        "git_commit": git.commit or "none",
        "git_dirty": str(git.dirty).lower(),
        "test_sha256": sha256_of(root / "data" / "prepare" / "test.parquet"),
        "arm": arm,
        "recalibration": settings.arms[arm].recalibration,
        **headline,
    }
