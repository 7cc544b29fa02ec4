"""The champion on the challenger's questions, where it was tested on others.

Scoring needs torch, so it is a process of its own: tasks/remeasure.py.
"""

import sys
from collections import deque
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from mlflow.entities.model_registry import ModelVersion

from firstkd.errors import PipelineError
from firstkd.files import read_json, sha256_of
from flows.gate import Evidence
from flows.processes import run_group
from flows.registry import download_student
from flows.terminal import terminal
from flows.tracking import Tracking
from flows.workspace import Workspace, stage_environment

KEPT_LINES = 50
"""Of the process's output, to find its error in."""


def holds_questions(workspace: Workspace, evidence: Evidence) -> bool:
    """Whether the test questions in the workspace are those of the evidence."""
    questions = workspace.root / "data" / "prepare" / "test.parquet"
    return questions.exists() and sha256_of(questions) == evidence.test_digest


def measure_again(
    workspace: Workspace, tracking: Tracking, version: ModelVersion, before: Evidence
) -> Evidence:
    """Return a registered version's evidence on the test questions in the workspace.

    What was measured of it on sets that are not there any more is kept. Raises PipelineError when
    the version cannot be measured.
    """
    who = f"{version.name} v{version.version}"
    with TemporaryDirectory() as scratch:
        student = download_student(tracking, version, Path(scratch))
        output = Path(scratch) / "measured"
        command = [sys.executable, "-m", "tasks.remeasure"]
        command += [str(student.weights), str(student.calibration), str(output)]
        said = _Said()
        if run_group(command, workspace.root, stage_environment(), said):
            raise PipelineError(
                f"{who} cannot be measured on the present test questions ({said.error}); "
                "`firstkd promote --no-comparison` leaves the comparison with it out"
            )
        measured = read_json(output / "metrics.json")
        sets = measured["sets"]
        predictions = pd.read_parquet(output / "predictions.parquet")
    gone = before.predictions[~before.predictions["set"].isin(sets)]
    return replace(
        before,
        test_digest=sha256_of(workspace.root / "data" / "prepare" / "test.parquet"),
        sets={**before.sets, **sets},
        temperature=measured["temperature"],
        predictions=pd.concat([predictions, gone], ignore_index=True),
        measured_anew=True,
    )


class _Said:
    """Shows progress on the terminal, if there is one, and keeps the end of the output."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(["no output"], maxlen=KEPT_LINES)
        self._screen = terminal.get()

    def line(self, text: str) -> None:
        if text.strip():
            self._lines.append(text)

    def progress(self, text: str) -> None:
        if self._screen:
            self._screen.progress(text)

    @property
    def error(self) -> str:
        return self._lines[-1].removeprefix("remeasure: ")
