"""The project folder as DVC and git see it: which stages there are, what is stale, what was made.

DVC is used through its command line. It decides what has to run; nothing here repeats its graph.
"""

import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from firstkd.errors import ArtifactError, PipelineError
from flows.processes import OutputSink, run_group

KEPT_LINES = 200
"""Of a failed stage's output, to find its error in."""


class StageError(PipelineError):
    """A stage failed; the message is the stage's own."""


class WorkspaceBusyError(PipelineError):
    """Another retraining runs in this folder."""


class Outcome(Enum):
    RAN = "Completed"
    RESTORED = "Restored"  # from DVC's run cache: the same inputs had been run before
    UNCHANGED = "Unchanged"


@dataclass(frozen=True)
class GitState:
    commit: str | None
    """None outside git and before the first commit."""
    dirty: bool
    """Whether the commit alone does not rebuild this; dvc.lock, the result, does not count."""


@dataclass(frozen=True)
class Workspace:
    root: Path

    def stages(self) -> list[str]:
        """Return the names of all stages, in the order of dvc.yaml."""
        return self._dvc("stage", "list", "--name-only", "--fail").split()

    def stale(self) -> set[str]:
        """Return the stages whose own inputs or outputs differ from dvc.lock.

        What depends on them is not in the set until they have run.
        """
        return set(self.changes())

    def changes(self) -> dict[str, Any]:
        """Return what DVC says has changed of each stale stage."""
        changes: dict[str, Any] = json.loads(self._dvc("status", "--json"))
        return changes

    def remote_urls(self) -> dict[str, str]:
        """Return where each of DVC's remotes is."""
        found = (line.split() for line in self._dvc("remote", "list").splitlines())
        return {name: url for name, url, *_ in found}

    def reproduce(self, stage: str, sink: OutputSink) -> Outcome:
        """Bring a stage, but not what it depends on, up to date through `dvc repro`.

        Raises StageError with the stage's own error message.
        """
        output = _Tail(sink)
        command = [sys.executable, "-m", "dvc", "repro", "--single-item", stage]
        if run_group(command, self.root, _environment(), output):
            raise StageError(_failure(stage, list(output.lines)))
        if f"Running stage '{stage}':" in output.announced:
            return Outcome.RAN
        if f"Stage '{stage}' is cached - skipping run, checking out outputs" in output.announced:
            return Outcome.RESTORED
        return Outcome.UNCHANGED

    def lock_digest(self) -> str:
        """Return the SHA-256 of dvc.lock: the identity of everything the pipeline made."""
        try:
            return hashlib.sha256((self.root / "dvc.lock").read_bytes()).hexdigest()
        except FileNotFoundError as error:
            raise ArtifactError(
                f"{self.root / 'dvc.lock'} is missing: nothing was made yet; run `firstkd run`"
            ) from error

    def lock(self) -> dict[str, Any]:
        """Return dvc.lock's entry of each stage."""
        stages: dict[str, Any] = YAML(typ="safe", pure=True).load(self.root / "dvc.lock")["stages"]
        return stages

    def git(self) -> GitState:
        commit = self._git("rev-parse", "--verify", "HEAD")
        changes = self._git("status", "--porcelain", "--", ".", ":!dvc.lock")
        return GitState(commit, dirty=commit is None or changes != "")

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the workspace for one retraining; raises WorkspaceBusyError when it is held.

        The system drops the hold when its process ends, however it ends.
        """
        path = self.root / "logs" / "retrain.lock"
        path.parent.mkdir(exist_ok=True)
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise WorkspaceBusyError(
                    f"a retraining already runs in {self.root.resolve()} "
                    f"(process {file.read().strip()}); wait for it or end it"
                ) from error
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield

    def _dvc(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "dvc", *arguments]
        done = subprocess.run(
            command, cwd=self.root, env=_environment(), capture_output=True, text=True
        )
        if done.returncode:
            reason = done.stderr.strip().removeprefix("ERROR: ")
            raise PipelineError(f"dvc {' '.join(arguments)}: {reason}")
        return done.stdout

    def _git(self, *arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=self.root, capture_output=True, text=True
            )
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None


class _Tail:
    """Passes output on, and keeps its end and what DVC says about stages."""

    def __init__(self, sink: OutputSink) -> None:
        self._sink = sink
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.announced: set[str] = set()

    def line(self, text: str) -> None:
        self.lines.append(text)
        if text.startswith(("Running stage ", "Stage ")):
            self.announced.add(text)
        self._sink.line(text)

    def progress(self, text: str) -> None:
        self._sink.progress(text)


def is_error_line(stage: str, line: str) -> bool:
    """Whether a line of a stage's output is its error message, or DVC's word on the failure."""
    return line.startswith((f"{stage.partition('@')[0]}: ", "ERROR: failed to reproduce "))


def _failure(stage: str, lines: list[str]) -> str:
    """Find the error message in the output of a failed `dvc repro`.

    A stage that fails as designed ends with `NAME: message` (tasks.stage.run_stage), one that
    crashes with a traceback; then comes DVC's own ERROR line, which names the stage that failed.
    """
    text = [line for line in lines if line.strip()]
    dvc_at = next((i for i, line in enumerate(text) if line.startswith("ERROR: ")), len(text))
    dvc_says = "\n".join(text[dvc_at:]).removeprefix("ERROR: ")
    named = re.match(r"failed to reproduce '([^']+)': failed to run: ", dvc_says)
    if not named:  # DVC could not even start it
        return dvc_says or f"stage {stage} failed without a word"
    failed = named[1]
    own = text[:dvc_at]
    for i in reversed(range(len(own))):
        if is_error_line(failed, own[i]):
            return "\n".join(own[i:])
    last = own[-1] if own else "no output"
    return f"stage {failed} crashed: {last} (its output above says more)"


def _environment() -> dict[str, str]:
    """Return the environment of DVC and the stages: `python` is this one, output comes at once."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"}
