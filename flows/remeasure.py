"""The champion on the challenger's questions, if it was tested on others.

Scoring needs torch, so it runs in a separate process: tasks/remeasure.py.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow.entities.model_registry import ModelVersion

from firstkd.errors import PipelineError
from firstkd.files import sha256_of
from firstkd.processes import run_group
from flows.dvc import stage_environment
from flows.project import Project
from flows.registry import student_files
from tasks.evidence import Evidence
from tasks.terminal import terminal

QUESTIONS = "data/prepare/test.parquet"


def holds_questions(project: Project, evidence: Evidence) -> bool:
    """Whether the test questions in the workspace are those of the evidence."""
    questions = project.root / QUESTIONS
    return questions.exists() and sha256_of(questions) == evidence.test_digest


def measure_again(project: Project, version: ModelVersion, before: Evidence) -> Evidence:
    """Return a registered version's evidence on the test questions in the workspace.

    What was measured of it on sets that are gone is kept. Raises PipelineError if the version
    cannot be measured.
    """
    said, stop_seconds = _Said(), project.workspace.stop_seconds
    with TemporaryDirectory() as scratch:
        files = student_files(project.tracking, version, Path(scratch))
        output = Path(scratch) / "measured"
        command = [sys.executable, "-m", "tasks.remeasure", *map(str, files), str(output)]
        if run_group(command, project.root, stage_environment(), said, stop_seconds):
            raise PipelineError(
                f"{version.name} v{version.version} cannot be measured on the present test "
                f"questions ({said.error}); `firstkd promote --no-comparison` leaves the "
                "comparison with it out"
            )
        return before.measured_again(output, sha256_of(project.root / QUESTIONS))


class _Said:
    """Shows progress on the terminal, if there is one, and keeps the last line."""

    def __init__(self) -> None:
        self._last = "no output"
        self._screen = terminal.get()

    def line(self, text: str) -> None:
        if text.strip():
            self._last = text

    def progress(self, text: str) -> None:
        self._screen.progress(text)

    @property
    def error(self) -> str:
        return self._last.removeprefix("remeasure: ")
