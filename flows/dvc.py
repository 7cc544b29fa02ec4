"""Run DVC through its command line, and read what it says about the stages that it runs."""

import os
import re
import subprocess
import sys
import time
from collections import deque
from enum import Enum
from pathlib import Path

from firstkd.errors import PipelineError, UnreachableError
from firstkd.processes import OutputSink, run_group
from tasks.dvc_files import check_readable
from tasks.terminal import is_error_line

DVC = [sys.executable, "-m", "dvc"]
KEPT_LINES = 200
"""Last lines of a failed stage's output, searched for its error."""
FAILED = re.compile(r"failed to reproduce '([^']+)': failed to run: .*, exited with (-?\d+)", re.S)
"""What `dvc repro` prints about a stage that ran and failed."""
HOLDER = re.compile(r"\(PID (\d+)\): (.+)")
"""The process that DVC names as the holder of its lock."""
CONTACT = "Having any troubles?"
"""What DVC prints after its own errors."""
FORGET_SECONDS = 10.0
"""How long to wait for the system to forget a killed process, whose lock DVC still respects."""


class StageError(PipelineError):
    """A stage failed; the message is the stage's own."""


class TransientStageError(StageError):
    """A stage crashed or could not fetch its sources; a retry may succeed."""


class WorkspaceBusyError(PipelineError):
    """Another retraining, or DVC on its own, is at work in this folder."""


class Outcome(Enum):
    RAN = "Completed"
    RESTORED = "Restored"  # from DVC's run cache: it ran on the same inputs before
    UNCHANGED = "Unchanged"


def ask(root: Path, *arguments: str) -> str:
    """Return DVC's output; raises PipelineError with DVC's reason if it fails."""
    command, deadline = [*DVC, *arguments], time.monotonic() + FORGET_SECONDS
    while True:
        done = subprocess.run(
            command, cwd=root, env=stage_environment(), capture_output=True, text=True
        )
        if done.returncode == 0:
            return done.stdout
        reason = done.stderr.strip().removeprefix("ERROR: ")
        holder = HOLDER.search(reason)
        if not holder or not _is_dead(int(holder[1])) or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    _check_free(root, reason)
    check_readable(root, reason)
    raise PipelineError(f"dvc {' '.join(arguments)}: {reason.partition(CONTACT)[0].strip()}")


def _is_dead(pid: int) -> bool:
    """Whether a process is gone, or a zombie that its parent has not reaped yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


class Shown:
    """A DVC command that outputs to a sink; keeps its last lines and what it says about stages."""

    def __init__(
        self,
        root: Path,
        stop_seconds: float,
        sink: OutputSink,
        *arguments: str,
        bars: bool = False,
    ) -> None:
        self._root, self._sink = root, sink
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._announced: set[str] = set()
        environment = stage_environment() | ({"DVC_IGNORE_ISATTY": "1"} if bars else {})
        self.code = run_group([*DVC, *arguments], root, environment, self, stop_seconds)

    def line(self, text: str) -> None:
        if text.strip():
            self._lines.append(text)
        if text.startswith(("Running stage ", "Stage ")):
            self._announced.add(text)
        self._sink.line(text)

    def progress(self, text: str) -> None:
        self._sink.progress(text)

    def outcome(self, stage: str) -> Outcome:
        if f"Running stage '{stage}':" in self._announced:
            return Outcome.RAN
        if f"Stage '{stage}' is cached - skipping run, checking out outputs" in self._announced:
            return Outcome.RESTORED
        return Outcome.UNCHANGED

    def check(self) -> None:
        """Raise an error if DVC failed.

        A failed stage's exit code gives the kind of error (firstkd.errors); its message is the end
        of its output, before DVC's own ERROR line.
        """
        if self.code == 0:
            return
        said = list(self._lines)
        dvc_at = next((i for i, line in enumerate(said) if line.startswith("ERROR: ")), len(said))
        dvc_says = "\n".join(said[dvc_at:]).removeprefix("ERROR: ")
        _check_free(self._root, dvc_says)
        check_readable(self._root, "\n".join(said))
        failed = FAILED.match(dvc_says)
        if not failed:  # it could not even start a stage
            raise StageError(dvc_says or f"dvc failed: {said[-1] if said else 'no output'}")
        stage, code, own = failed[1], int(failed[2]), said[:dvc_at] or ["no output"]
        if code not in (PipelineError.exit_code, UnreachableError.exit_code):
            what = f"stage {stage} crashed with exit code {code}: {own[-1]}"
            raise TransientStageError(f"{what} (see its output above)")
        begins = [i for i in range(len(own)) if is_error_line(stage, own[i])]
        message = "\n".join(own[begins[-1] :] if begins else own[-1:])
        raise (TransientStageError if code == UnreachableError.exit_code else StageError)(message)


def _check_free(root: Path, dvc_says: str) -> None:
    """Raise WorkspaceBusyError if DVC complains that another DVC is at work here."""
    if "Unable to acquire lock" not in dvc_says and "is busy, it is being" not in dvc_says:
        return
    process = HOLDER.search(dvc_says)
    who = f" (process {process[1]}: {process[2]})" if process else ""
    raise WorkspaceBusyError(
        f"DVC is already running in {root.resolve()}{who}; wait for it or stop it"
    )


def stage_environment() -> dict[str, str]:
    """Return the environment for DVC and the stages: this `python`, and unbuffered output."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"}
