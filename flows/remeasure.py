"""Measure the champion on the challenger's questions, if it was tested on others.

Scoring needs torch, so it runs in a separate process: tasks/remeasure.py.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow.entities.model_registry import ModelVersion

from firstkd.errors import PipelineError
from firstkd.files import sha256_of
from flows.program import run_program
from flows.project import Project
from flows.registry import QUESTIONS, student_files
from tasks.evidence import Evidence


def holds_questions(project: Project, evidence: Evidence) -> bool:
    """Whether the test questions in the workspace are those of the evidence."""
    questions = project.root / QUESTIONS
    return questions.exists() and sha256_of(questions) == evidence.test_digest


def measure_again(project: Project, version: ModelVersion, before: Evidence) -> Evidence:
    """Return a registered version's evidence on the test questions in the workspace.

    Its results on sets that are gone are kept. Raises PipelineError if the version
    cannot be measured.
    """
    with TemporaryDirectory() as scratch:
        files = student_files(project.tracking, version, Path(scratch))
        output = Path(scratch) / "measured"
        if problem := run_program(project.workspace, "remeasure", *files, output):
            raise PipelineError(
                f"{version.name} v{version.version} cannot be measured on the current test "
                f"questions ({problem}); `firstkd promote --no-comparison` skips the "
                "comparison with it"
            )
        return before.measured_again(output, sha256_of(project.root / QUESTIONS))
