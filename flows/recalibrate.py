"""Release a registered student with a new temperature and threshold, without training.

The new version has the weights of the version that it recalibrates. It is recorded, registered and
run through the gate like any other. Each step is all or nothing; if killed in between, the same
command resumes.
"""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlflow.entities.model_registry import ModelVersion
from mlflow.models.model import ModelInfo

from firstkd.errors import PipelineError
from firstkd.files import read_json, sha256_of
from flows import registry
from flows.program import run_program
from flows.project import Project
from flows.record import record_evaluation
from flows.registry import NOT_REPRODUCIBLE_TAG, RECALIBRATES_TAG

DIGEST_TAG = "recalibration_sha256"
"""Digest of weights, calibration and test questions; each digest has at most one version."""
KEPT_TAGS = ("git_commit", "git_dirty", NOT_REPRODUCIBLE_TAG, "student", "weights", "evaluation")


@dataclass(frozen=True)
class Recalibrated:
    """A student's weights with the calibration that was fitted to them."""

    weights: Path
    evaluation: Path

    @property
    def metrics(self) -> dict[str, Any]:
        return dict(read_json(self.evaluation / "metrics.json"))


@contextmanager
def recalibrated(
    project: Project, version: ModelVersion, questions: Path
) -> Iterator[Recalibrated]:
    """Fit a version's temperature and threshold to questions; nothing is recorded yet."""
    with TemporaryDirectory() as scratch:
        weights, _ = registry.student_files(project.tracking, version, Path(scratch, "model"))
        before = project.tracking.run_files(
            registry.run_of(version), "evaluation", Path(scratch, "run")
        )
        output = Path(scratch, "evaluation")
        files = (weights, before, questions.resolve(), output)
        if problem := run_program(project.workspace, "recalibrate", *files):
            raise PipelineError(problem)
        if version.tags["test_sha256"] == sha256_of(project.root / registry.QUESTIONS):
            if (before / "teacher.json").exists():
                shutil.copy(before / "teacher.json", output)
            if (before / "exports").exists():  # they have the same weights
                shutil.copytree(before / "exports", output / "exports")
        yield Recalibrated(weights, output)


def register(project: Project, version: ModelVersion, fitted: Recalibrated) -> ModelVersion:
    """Return the version with these weights and this calibration, creating it if needed.

    Hold the workspace: its open runs are assumed to belong to killed processes.
    """
    root_version = version.tags.get(RECALIBRATES_TAG, str(version.version))
    calibration = sha256_of(fitted.evaluation / "calibration.json")
    tests = sha256_of(project.root / registry.QUESTIONS)
    digest = hashlib.sha256(f"{root_version} {calibration} {tests}".encode()).hexdigest()
    known = registry.tagged(project, DIGEST_TAG, digest)
    if known:
        run_id = registry.run_of(known[0])
    else:
        tags = {RECALIBRATES_TAG: root_version, DIGEST_TAG: digest}
        name = f"recalibrate v{root_version}"
        run_id = record_evaluation(project, name, tags, fitted.evaluation)

    def log() -> tuple[ModelInfo, dict[str, Any]]:
        model = registry.log_model(project, run_id, fitted.weights, fitted.evaluation)
        kept = {tag: version.tags[tag] for tag in KEPT_TAGS if tag in version.tags}
        measured = registry.headline(project.root, fitted.evaluation)
        return model, {RECALIBRATES_TAG: root_version, **kept, **measured}

    return registry.version_of(project, run_id, DIGEST_TAG, digest, log)
