"""What the user sees of the stages while they run."""

import sys
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TextIO

CLEAR = "\r\x1b[K"
PROGRESS_SECONDS = 30.0
"""Seconds between states of a progress bar if they cannot overwrite each other (a log file)."""
DVC_CHATTER = (
    "Running stage '",
    "Stage '",
    "> ",
    "Generating lock file",
    "Updating lock file",
    "Use `dvc push`",
    "To track the changes",
    "To enable auto staging",
    "\tgit add",
    "\tdvc config",
)


@dataclass
class Terminal:
    """Shows stages and their output on `stream`: live bars on a terminal, occasional ones in a log.

    Without a stream it shows nothing: a scheduled run leaves everything to Prefect's log.
    The error of a failed stage is left out: the caller of the flow reports it, once.
    """

    stream: TextIO | None = field(default_factory=lambda: sys.stderr)
    _stage: str = ""
    _shown: float = 0.0
    _failed: bool = False

    def begin(self, stage: str) -> None:
        self._stage, self._shown, self._failed = stage, time.monotonic(), False
        self._write(f"── {stage} ──\n")

    def end(self, outcome: str) -> None:
        self._write(f"── {self._stage}: {outcome} ──\n")

    def line(self, text: str) -> None:
        # the error ends the output, and may have several lines
        self._failed = self._failed or is_error_line(self._stage, text)
        if text.strip() and not text.startswith(DVC_CHATTER) and not self._failed:
            self._write(f"{text}\n")

    def progress(self, text: str) -> None:
        if text.startswith(DVC_CHATTER):  # a line that is not complete yet
            return
        if self.stream and self.stream.isatty():
            self._write(text)
        elif time.monotonic() - self._shown > PROGRESS_SECONDS:
            self._shown = time.monotonic()
            self._write(f"{text}\n")

    def _write(self, text: str) -> None:
        if self.stream:
            self.stream.write(f"{CLEAR}{text}" if self.stream.isatty() else text)
            self.stream.flush()


SILENT = Terminal(None)
terminal = ContextVar("terminal", default=SILENT)
"""Set by the command line."""


def is_error_line(stage: str, line: str) -> bool:
    """Whether a line of a stage's output is its error message, or DVC's about the failure."""
    return line.startswith((f"{stage.partition('-')[0]}: ", "ERROR: failed to reproduce "))
