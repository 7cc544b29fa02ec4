"""The registry of students: MLflow versions, their tags and aliases, and the evidence for each."""

import shutil
from collections.abc import Callable
from importlib.metadata import version as installed_version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.models import ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import AnyType

import firstkd
from firstkd.errors import ArtifactError, PipelineError
from firstkd.files import read_json, sha256_of
from firstkd.git import git_state
from flows.lock import registry_lock
from flows.project import Project
from flows.record import LOCK_TAG
from flows.tracking import Tracking
from flows.workspace import Workspace
from tasks.evidence import Evidence
from tasks.kept import export_hashes

CHALLENGER = "challenger"
NOT_REPRODUCIBLE_TAG = "not_reproducible"
"""Why a version's commit does not rebuild it; without this tag, it does."""
RECALIBRATES_TAG = "recalibrates"
"""The version whose weights this one shares, under a different calibration."""
QUESTIONS = "data/prepare/test.parquet"
STUDENT_FILES = {".safetensors", ".json", ".jsonl", ".jinja", ".model", ".txt"}
"""Suffixes of the files in a student's folder. Others could be pickles, which are code."""
SERVING_NEEDS = "mlflow numpy pandas pydantic rouge-score ruamel-yaml sacrebleu safetensors scipy"
SERVING_NEEDS += " tokenizers torch tqdm transformers"
TEXT, NUMBER, FLAG = DataType.string, DataType.double, DataType.boolean
Log = Callable[[], tuple[ModelInfo, dict[str, Any]]]
SIGNATURE = ModelSignature(
    # choices: a list of texts; as Array(string), MLflow would cut [None, "in a den"] to ["n", "i"]
    Schema([ColSpec(TEXT, "question"), ColSpec(AnyType(), "choices", required=False)]),
    Schema([ColSpec(TEXT, "answer"), ColSpec(NUMBER, "confidence"), ColSpec(FLAG, "abstain")]),
)


def register(project: Project, run_id: str) -> ModelVersion:
    """Return the registered version of the project's current student, creating it if needed.

    There is one version per dvc.lock, whoever registers it; a new one gets the alias
    `challenger`. If made from uncommitted changes, it becomes reproducible once they are committed.

    Raises PipelineError if the files here are no longer those that the run recorded.
    """
    root, student, client = project.root, project.student, project.client

    def log() -> tuple[ModelInfo, dict[str, Any]]:
        recorded = client.get_run(run_id).data.tags[LOCK_TAG]
        evaluation = root / student.evaluation
        model = log_model(project, run_id, root / student.weights, evaluation)
        project.workspace.check_unchanged(recorded)
        return model, {**_tags(project), **headline(root, evaluation)}

    version = version_of(project, run_id, LOCK_TAG, project.workspace.lock_digest(), log)
    number = str(version.version)
    if NOT_REPRODUCIBLE_TAG in version.tags and _problem(project.workspace) is None:
        with registry_lock(project.tracking, project.model):
            commit = git_state(root).commit or "none"
            client.set_model_version_tag(project.model, number, "git_commit", commit)
            client.set_model_version_tag(project.model, number, "git_dirty", "false")
            client.delete_model_version_tag(project.model, number, NOT_REPRODUCIBLE_TAG)
    return client.get_model_version(project.model, number)


def version_of(project: Project, run_id: str, tag: str, digest: str, log: Log) -> ModelVersion:
    """Return the one version with this tag value; if there is none, register the model from `log`.

    The newest version gets the alias `challenger`.
    """
    name, client, tracking = project.model, project.client, project.tracking
    if is_new := not tagged(project, tag, digest):
        with tracking.as_default():
            model, tags = log()
    with registry_lock(tracking, name):
        if is_new and not tagged(project, tag, digest):  # nor by another workspace in the meantime
            if not client.search_registered_models(f"name = '{name}'"):
                client.create_registered_model(name)
            with tracking.as_default():
                client.create_model_version(
                    name, model.model_uri, run_id, {tag: digest, **tags}, model_id=model.model_id
                )
        version, *repeated = tagged(project, tag, digest)
        for extra in repeated:  # made by MLflow's client, which retries if an answer is lost
            client.delete_model_version(name, str(extra.version))
        if version.version == versions(project)[0].version:
            client.set_registered_model_alias(name, CHALLENGER, str(version.version))
    return version


def tagged(project: Project, tag: str, value: str) -> list[ModelVersion]:
    condition = f"name = '{project.model}' and tags.{tag} = '{value}'"
    found = project.client.search_model_versions(condition)
    return sorted(found, key=lambda version: int(version.version))


def versions(project: Project) -> list[ModelVersion]:
    """Return every version, newest first; none before the first registration."""
    found = project.client.search_model_versions(f"name = '{project.model}'")
    return sorted(found, key=lambda version: -int(version.version))


def get_version(project: Project, asked: str | None) -> ModelVersion:
    """Return a version by number or alias, or the newest; raises PipelineError if there is none."""
    found, known = versions(project), aliases(project)
    if not found:
        raise PipelineError(f"no {project.model} has been registered yet; run `firstkd run` first")
    number = known.get(asked, asked) if asked else str(found[0].version)
    for version in found:
        if str(version.version) == number:
            return version
    allowed = ", ".join([*(str(version.version) for version in found), *sorted(known)])
    raise PipelineError(f"{project.model} has no version {asked!r}; allowed: {allowed}")


def aliases(project: Project) -> dict[str, str]:
    """Return the version behind each alias; empty before the first registration."""
    models = project.client.search_registered_models(f"name = '{project.model}'")
    return {alias: str(number) for model in models for alias, number in model.aliases.items()}


def run_of(version: ModelVersion) -> str:
    """Return the id of the run that a version came from."""
    assert version.run_id is not None  # `register` always logs within a run
    return version.run_id


def load_evidence(tracking: Tracking, version: ModelVersion) -> Evidence:
    """Return what the gate needs to know about a version, from what was recorded with it."""
    with TemporaryDirectory() as scratch:
        files = tracking.run_files(run_of(version), "evaluation", Path(scratch))
        problem = version.tags.get(NOT_REPRODUCIBLE_TAG)
        return Evidence.read(files, str(version.version), version.tags["test_sha256"], problem)


def load_metrics(tracking: Tracking, version: ModelVersion) -> dict[str, Any]:
    """Return the recorded evaluation metrics of a version."""
    with TemporaryDirectory() as scratch:
        path = tracking.run_files(run_of(version), "evaluation/metrics.json", Path(scratch))
        return dict(read_json(path))


def student_files(tracking: Tracking, version: ModelVersion, scratch: Path) -> tuple[Path, Path]:
    """Return a registered student's weights (a folder) and calibration, without its code.

    Raises ArtifactError for any file that does not belong to a student.
    """
    found = tracking.version_files(version, "artifacts", scratch)
    for file in sorted(path for path in found.rglob("*") if path.is_file()):
        if file.suffix not in STUDENT_FILES:
            raise ArtifactError(
                f"{version.name} v{version.version} contains {file.relative_to(found)}, which is "
                "not part of a student, so it is not loaded; find out who put it into the registry"
            )
    return found / version.tags["student"], found / "calibration.json"


def log_model(project: Project, run_id: str, weights: Path, evaluation: Path) -> ModelInfo:
    """Log a student as an MLflow model made from code and files."""
    with TemporaryDirectory() as scratch, mlflow.start_run(run_id=run_id):
        calibration = Path(scratch, "calibration.json")
        shutil.copyfile(evaluation / calibration.name, calibration)
        if any(file.is_symlink() for file in weights.iterdir()):
            # MLflow refuses links out of a folder, such as DVC's to its cache
            weights = Path(shutil.copytree(weights, Path(scratch, weights.name)))
        model: ModelInfo = mlflow.pyfunc.log_model(
            name="student",
            python_model=str(Path(__file__).with_name("student_model.py")),
            # as URIs: MLflow treats a plain path as one, and a % in it as an escape
            artifacts={"student": weights.as_uri(), "calibration": calibration.as_uri()},
            code_paths=[str(Path(firstkd.__file__).parent)],
            pip_requirements=[_pinned(name) for name in SERVING_NEEDS.split()],
            signature=SIGNATURE,
            model_config={"abstain_below": project.settings.serve.abstain_below},
        )
    return model


def _pinned(name: str) -> str:
    public, _, _build = installed_version(name).partition("+")  # "+cpu" is on no index
    return f"{name}=={public}"


def _tags(project: Project) -> dict[str, Any]:
    student, git = project.student, git_state(project.root)
    problem = _problem(project.workspace)
    return {
        "git_commit": git.commit or "none",
        "git_dirty": str(git.problem is not None).lower(),
        **({NOT_REPRODUCIBLE_TAG: problem} if problem else {}),
        "student": student.name,
        "weights": student.weights.as_posix(),
        "evaluation": student.evaluation.as_posix(),
        **dict(export_hashes(project.root, project.settings)),
    }


def headline(root: Path, evaluation: Path) -> dict[str, str]:
    """Return the tags that say on which test questions a version was measured, and how it did."""
    sets = read_json(evaluation / "metrics.json")["sets"]
    numbers = {
        f"{set_name}_{metric}": f"{values['calibrated'][metric]['value']:.4f}"
        for set_name, values in sets.items()
        for metric in ("accuracy", "nll", "aurc", "ece")
    }
    return {"test_sha256": sha256_of(root / QUESTIONS), **numbers}


def _problem(workspace: Workspace) -> str | None:
    """Return why the current commit does not rebuild the current state; None if it does."""
    if problem := git_state(workspace.root).problem:
        return problem
    if stale := sorted(workspace.stale()):
        return f"files of {', '.join(stale)} were changed while it was being built"
    return None
