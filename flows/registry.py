"""The registry of students: MLflow versions, their tags and aliases, and the evidence of each."""

from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import pandas as pd
from mlflow.artifacts import download_artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.models import ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import AnyType

import firstkd
from firstkd.errors import ArtifactError, PipelineError
from firstkd.files import read_json, sha256_of
from firstkd.settings import Settings
from flows.gate import Evidence
from flows.lease import registry_lease
from flows.record import LOCK_TAG
from flows.tracking import Tracking
from flows.workspace import Workspace

CHALLENGER = "challenger"
NOT_REPRODUCIBLE_TAG = "not_reproducible"
"""Why a version's commit does not rebuild it; a version without it can be rebuilt."""
STUDENT_FILES = {".safetensors", ".json", ".jsonl", ".jinja", ".model", ".txt"}
"""Suffixes of what a student's folder holds. Others could be pickles, which are code."""
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
        [
            ColSpec(DataType.string, "question"),
            # a list of texts; as Array(string), MLflow would cut [None, "in a den"] to ["n", "i"]
            ColSpec(AnyType(), "choices", required=False),
        ]
    ),
    outputs=Schema(
        [
            ColSpec(DataType.string, "answer"),
            ColSpec(DataType.double, "confidence"),
            ColSpec(DataType.boolean, "abstain"),
        ]
    ),
)


def register(
    workspace: Workspace, settings: Settings, tracking: Tracking, run_id: str
) -> ModelVersion:
    """Return the registered version of the workspace's present student, made if need be.

    There is one version per dvc.lock, whoever registers it; a new one gets the alias
    `challenger`. One that was made from uncommitted changes counts as reproducible once they are
    committed.

    Raises PipelineError when what lies here is no longer what the run has recorded.
    """
    name, client = settings.record.registered_model, tracking.client
    digest = workspace.lock_digest()
    is_new = not _of_digest(tracking, name, digest)
    if is_new:
        recorded = client.get_run(run_id).data.tags[LOCK_TAG]
        with tracking.as_default():
            model = _log_model(workspace.root, settings, run_id)
        workspace.check_unchanged(recorded)
        tags = {LOCK_TAG: digest, **_tags(workspace, settings)}
    with registry_lease(tracking, name) as check:
        if is_new and not _of_digest(tracking, name, digest):  # nor by another workspace, meanwhile
            check()
            if not client.search_registered_models(f"name = '{name}'"):
                client.create_registered_model(name)
            with tracking.as_default():
                client.create_model_version(
                    name, model.model_uri, run_id, tags, model_id=model.model_id
                )
        version, *repeated = _of_digest(tracking, name, digest)
        for extra in repeated:  # by MLflow's client, which asks again where an answer is lost
            client.delete_model_version(name, str(extra.version))
        if can_be_rebuilt_now(workspace, version):
            _note_commit(workspace, tracking, version)
        number = str(version.version)
        if number == str(versions(tracking, name)[0].version):
            client.set_registered_model_alias(name, CHALLENGER, number)
    return client.get_model_version(name, number)


def find_version(
    workspace: Workspace, settings: Settings, tracking: Tracking
) -> ModelVersion | None:
    """Return the version of the workspace's present student, if it is registered."""
    found = _of_digest(tracking, settings.record.registered_model, workspace.lock_digest())
    return next(iter(found), None)


def _of_digest(tracking: Tracking, name: str, digest: str) -> list[ModelVersion]:
    condition = f"name = '{name}' and tags.{LOCK_TAG} = '{digest}'"
    found = tracking.client.search_model_versions(condition)
    return sorted(found, key=lambda version: int(version.version))


def versions(tracking: Tracking, name: str) -> list[ModelVersion]:
    """Return every version, the newest first; none before the first registration."""
    found = tracking.client.search_model_versions(f"name = '{name}'")
    return sorted(found, key=lambda version: -int(version.version))


def get_version(tracking: Tracking, name: str, number: int | None) -> ModelVersion:
    """Return a version by its number, or the newest; raises PipelineError when it is not there."""
    found = versions(tracking, name)
    for version in found:
        if number in (None, int(version.version)):
            return version
    if not found:
        raise PipelineError(f"no {name} has been registered yet; run `firstkd run` first")
    known = ", ".join(f"v{version.version}" for version in found)
    raise PipelineError(f"{name} v{number} is not registered; there are {known}")


def can_be_rebuilt_now(workspace: Workspace, version: ModelVersion) -> bool:
    """Whether the present commit rebuilds a version of this state that no commit rebuilt before."""
    return NOT_REPRODUCIBLE_TAG in version.tags and _problem(workspace) is None


def _note_commit(workspace: Workspace, tracking: Tracking, version: ModelVersion) -> None:
    client, name, number = tracking.client, version.name, str(version.version)
    client.set_model_version_tag(name, number, "git_commit", workspace.git().commit or "none")
    client.set_model_version_tag(name, number, "git_dirty", "false")
    client.delete_model_version_tag(name, number, NOT_REPRODUCIBLE_TAG)


def _problem(workspace: Workspace) -> str | None:
    """Return why the present commit does not rebuild the present state, if so."""
    if problem := workspace.git().problem:
        return problem
    if stale := sorted(workspace.stale()):
        return f"files of {', '.join(stale)} were changed while it was made"
    return None


def aliases(tracking: Tracking, name: str) -> dict[str, str]:
    """Return the version behind each alias; empty before the first registration."""
    models = tracking.client.search_registered_models(f"name = '{name}'")
    return {alias: str(number) for model in models for alias, number in model.aliases.items()}


def run_of(version: ModelVersion) -> str:
    """Return the id of the retraining's run that a version came from."""
    assert version.run_id is not None  # `register` always logs within a run
    return version.run_id


def load_evidence(tracking: Tracking, version: ModelVersion) -> Evidence:
    """Return what the gate needs to know of a version, from what was recorded with it."""
    with TemporaryDirectory() as folder:
        local = Path(tracking.client.download_artifacts(run_of(version), "evaluation", folder))
        measured, teacher = read_json(local / "metrics.json"), local / "teacher.json"
        return Evidence(
            version=str(version.version),
            test_digest=version.tags["test_sha256"],
            sets=measured["sets"],
            temperature=measured["temperature"],
            teacher_accuracy=read_json(teacher)["accuracy"] if teacher.exists() else None,
            predictions=pd.read_parquet(local / "predictions.parquet"),
            not_reproducible=version.tags.get(NOT_REPRODUCIBLE_TAG),
        )


@dataclass(frozen=True)
class StudentFiles:
    """A registered student on disk."""

    weights: Path
    """The model's folder."""
    calibration: Path
    """The calibration.json of its evaluation."""


def download_student(tracking: Tracking, version: ModelVersion, folder: Path) -> StudentFiles:
    """Bring a registered student's weights and calibration to `folder`, not the code with it.

    Raises ArtifactError when there is anything that no student consists of.
    """
    with tracking.as_default():
        model = f"models:/{version.name}/{version.version}"
        found = Path(download_artifacts(f"{model}/artifacts", dst_path=str(folder)))
    for file in sorted(path for path in found.rglob("*") if path.is_file()):
        if file.suffix not in STUDENT_FILES:
            raise ArtifactError(
                f"{version.name} v{version.version} holds {file.relative_to(found)}, which no "
                "student consists of, and is not loaded; find out who put it into the registry"
            )
    return StudentFiles(found / version.tags["student"], found / "calibration.json")


def _log_model(root: Path, settings: Settings, run_id: str) -> ModelInfo:
    """Log the student as a model made from code and files."""
    evaluation = root / "data" / "evaluate" / settings.record.student
    with mlflow.start_run(run_id=run_id):
        model: ModelInfo = mlflow.pyfunc.log_model(
            name="student",
            python_model=str(Path(__file__).with_name("student_model.py")),
            artifacts={
                "student": str(root / "data" / "model" / settings.record.student),
                "calibration": str(evaluation / "calibration.json"),
            },
            code_paths=[str(Path(firstkd.__file__).parent)],
            pip_requirements=[_pinned(name) for name in SERVING_NEEDS],
            signature=SIGNATURE,
            model_config=settings.serve.model_dump(),
        )
    return model


def _pinned(name: str) -> str:
    public, _, _build = installed_version(name).partition("+")  # "+cpu" is on no index
    return f"{name}=={public}"


def _tags(workspace: Workspace, settings: Settings) -> dict[str, Any]:
    root, student, git = workspace.root, settings.record.student, workspace.git()
    evaluated = read_json(root / "data" / "evaluate" / settings.record.student / "metrics.json")
    headline = {
        f"{set_name}_{metric}": f"{values['calibrated'][metric]['value']:.4f}"
        for set_name, values in evaluated["sets"].items()
        for metric in ("accuracy", "nll", "aurc", "ece")
    }
    problem = _problem(workspace)
    return {
        "git_commit": git.commit or "none",
        "git_dirty": str(git.dirty).lower(),
        **({NOT_REPRODUCIBLE_TAG: problem} if problem else {}),
        "test_sha256": sha256_of(root / "data" / "prepare" / "test.parquet"),
        "student": student,
        **headline,
    }
