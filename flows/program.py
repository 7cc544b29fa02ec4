"""Run modules of tasks/ that are not stages in separate processes, since scoring needs torch."""

import sys
from pathlib import Path

from firstkd.processes import run_group
from flows.dvc import stage_environment
from flows.workspace import Workspace
from tasks.terminal import terminal


def run_program(workspace: Workspace, name: str, *files: Path) -> str | None:
    """Run `python -m tasks.NAME FILES`; return its error if it fails."""
    command, said = [sys.executable, "-m", f"tasks.{name}", *map(str, files)], _Said()
    failed = run_group(command, workspace.root, stage_environment(), said, workspace.stop_seconds)
    return said.last.removeprefix(f"{name}: ") if failed else None


class _Said:
    """Shows progress on the terminal, if there is one, and keeps the last line."""

    def __init__(self) -> None:
        self.last = "no output"
        self._screen = terminal.get()

    def line(self, text: str) -> None:
        if text.strip():
            self.last = text

    def progress(self, text: str) -> None:
        self._screen.progress(text)
