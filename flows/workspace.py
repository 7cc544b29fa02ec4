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
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from configobj import ConfigObj
from ruamel.yaml import YAML

from firstkd.errors import ArtifactError, PipelineError
from flows.processes import OutputSink, is_alive, run_group

DVC = [sys.executable, "-P", str(Path(__file__).with_name("dvc_process.py"))]
KEPT_LINES = 200
"""Of a failed stage's output, to find its error in."""
GIT_REASONS = ("fatal: ", "error: ", " ! ")
GIT_SECONDS = 600.0
HOLDER = re.compile(r"\(PID (\d+)\): (.+)")
"""Who DVC says has its lock."""
FORGET_SECONDS = 10.0
"""In which the system forgets a killed process: until then DVC respects its lock."""
SHOWN_CHANGES = 3
"""Uncommitted files that are named."""


class StageError(PipelineError):
    """A stage failed; the message is the stage's own."""


class TransientStageError(StageError):
    """A stage crashed or could not fetch its sources: it may pass the next time."""


class WorkspaceBusyError(PipelineError):
    """Another retraining, or DVC by itself, works in this folder."""


class GitError(PipelineError):
    """Git refused; the message is its own first line."""


class Outcome(Enum):
    RAN = "Completed"
    RESTORED = "Restored"  # from DVC's run cache: the same inputs had been run before
    UNCHANGED = "Unchanged"


@dataclass(frozen=True)
class GitState:
    commit: str | None
    """None outside git and before the first commit."""
    problem: str | None
    """Why the commit alone does not rebuild this; dvc.lock, the result, does not count."""

    @property
    def dirty(self) -> bool:
        return self.problem is not None


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
        # not `dvc remote list`, which breaks long addresses over lines
        listed = self._dvc("config", "--list").splitlines()
        found = (re.fullmatch(r"remote\.(.+?)\.url=(.+)", line) for line in listed)
        return {match[1]: match[2] for match in found if match}

    def reproduce(self, stage: str, sink: OutputSink) -> Outcome:
        """Bring a stage, but not what it depends on, up to date through `dvc repro`.

        Raises StageError with the stage's own error message.
        """
        # waiting: what a stage has made for hours must not be lost to a `dvc push` of seconds
        code, output = self._dvc_shown(sink, "--wait-for-lock", "repro", "--single-item", stage)
        if code:
            raise self._failure(stage, list(output.lines))
        if f"Running stage '{stage}':" in output.announced:
            return Outcome.RAN
        if f"Stage '{stage}' is cached - skipping run, checking out outputs" in output.announced:
            return Outcome.RESTORED
        return Outcome.UNCHANGED

    def reproduce_each(self, stages: Sequence[str], sink: OutputSink, force: bool) -> None:
        """Bring these stages, and no others, up to date in their order.

        With `force` each runs again, whatever DVC has kept.
        """
        options = ["--force", "--no-run-cache"] if force else []
        code, output = self._dvc_shown(sink, "repro", "--single-item", *options, *stages)
        if code:
            raise self._failure("repro", list(output.lines))

    def damaged(self) -> list[str]:
        """Return the outputs that are missing or not as dvc.lock says; their files are hashed."""
        return sorted(
            path
            for found in self.changes().values()
            for change in found
            if isinstance(change, dict)
            for path in change.get("changed outs", {})
        )

    def check_unchanged(self, digest: str) -> None:
        """Raise PipelineError unless what lies here is what the dvc.lock of this digest names."""
        if self.lock_digest() != digest or self.damaged():
            raise PipelineError(
                "the results were changed while they were recorded: another `dvc repro` ran here; "
                "run it again"
            )

    def push(self, sink: OutputSink) -> None:
        """Copy to the default remote what dvc.lock names."""
        code, output = self._dvc_shown(sink, "--wait-for-lock", "push", bars=True)
        if code:
            raise PipelineError(f"dvc push: {output.error}")

    def restore(self, sink: OutputSink, *paths: str) -> bool:
        """Bring back these outputs (by default all that dvc.lock names); whether all came.

        They come from the cache, or from the remote if there is one.
        """
        if self.remote_urls():
            self._dvc_shown(sink, "fetch", *paths, bars=True)
        return self._dvc_shown(sink, "checkout", "--force", *paths, bars=True)[0] == 0

    def use_storage_of(self, other: "Workspace") -> None:
        """Share another workspace's DVC cache and remotes, also those named since this commit."""
        config, there = ConfigObj(), other.root / ".dvc"
        for name in ("config", "config.local"):
            config.merge(ConfigObj(str(there / name)))
        for section in config.sections:
            url = config[section].get("url")
            if section.startswith(("'remote ", "remote ")) and "://" not in url:
                config[section]["url"] = str((there / url).resolve())
        config.setdefault("cache", {})["dir"] = other._dvc("cache", "dir").strip()
        config.filename = str(self.root / ".dvc" / "config.local")
        config.write()

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
        """Return what git says of this folder; a folder without git is a state, not an error."""
        try:
            commit = self.run_git("rev-parse", "--verify", "HEAD")
            self.run_git("ls-files", "--error-unmatch", "dvc.yaml", "params.yaml")
        except GitError as error:
            return GitState(None, f"it was made outside git ({error})")
        changes = self.run_git("status", "--porcelain", "--", ".", ":!dvc.lock").splitlines()
        if changes:
            names = [change.split(maxsplit=1)[1] for change in changes[:SHOWN_CHANGES]]
            shown = ", ".join([*names, "…"] if len(changes) > SHOWN_CHANGES else names)
            return GitState(commit, f"it was made with uncommitted changes ({shown})")
        return GitState(commit, None)

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
        deadline = time.monotonic() + FORGET_SECONDS
        while True:
            done = self._run_dvc(*arguments)
            if done.returncode == 0:
                return done.stdout
            reason = done.stderr.strip().removeprefix("ERROR: ")
            holder = HOLDER.search(reason)
            if not holder or is_alive(int(holder[1])) or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        self._check_free(reason)
        raise PipelineError(f"dvc {' '.join(arguments)}: {reason}")

    def _run_dvc(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*DVC, *arguments]
        return subprocess.run(
            command, cwd=self.root, env=stage_environment(), capture_output=True, text=True
        )

    def _dvc_shown(
        self, sink: OutputSink, *arguments: str, bars: bool = False
    ) -> tuple[int, "_Tail"]:
        """Run DVC with its output going to `sink`; return its exit code and the end of it."""
        output = _Tail(sink)
        command = [*DVC, *arguments]
        environment = stage_environment() | ({"DVC_IGNORE_ISATTY": "1"} if bars else {})
        return run_group(command, self.root, environment, output), output

    def _check_free(self, dvc_says: str) -> None:
        """Raise WorkspaceBusyError when another DVC at work here is what DVC complains of."""
        if "Unable to acquire lock" not in dvc_says and "is busy, it is being" not in dvc_says:
            return
        process = HOLDER.search(dvc_says)
        who = f" (process {process[1]}: {process[2]})" if process else ""
        raise WorkspaceBusyError(
            f"DVC is already at work in {self.root.resolve()}{who}; wait for it or end it"
        )

    def _failure(self, stage: str, lines: list[str]) -> StageError:
        """Return the error of a failed `dvc repro` with the message found in its output.

        A stage that fails as designed ends with `NAME: message` (tasks.stage.run_stage), one that
        crashes with a traceback; then comes DVC's own ERROR line, which names the stage that
        failed.
        """
        text = [line for line in lines if line.strip()]
        dvc_at = next((i for i, line in enumerate(text) if line.startswith("ERROR: ")), len(text))
        dvc_says = "\n".join(text[dvc_at:]).removeprefix("ERROR: ")
        self._check_free(dvc_says)
        named = re.match(r"failed to reproduce '([^']+)': failed to run: ", dvc_says)
        if not named:  # DVC could not even start it
            return StageError(dvc_says or f"stage {stage} failed without a word")
        failed = named[1]
        own = text[:dvc_at]
        for i in reversed(range(len(own))):
            if is_error_line(failed, own[i]):
                kind = TransientStageError if failed == "fetch" else StageError
                return kind("\n".join(own[i:]))
        last = own[-1] if own else "no output"
        return TransientStageError(f"stage {failed} crashed: {last} (its output above says more)")

    def run_git(self, *arguments: str, env: dict[str, str] | None = None, text: str = "") -> str:
        """Run git here, with `text` as its input; raises GitError with its own words.

        It is given up after GIT_SECONDS: nobody may be there when a remote does not answer.
        """
        try:
            done = subprocess.run(
                ["git", *arguments],
                cwd=self.root,
                env={**os.environ, **(env or {})},
                input=text,
                capture_output=True,
                text=True,
                timeout=GIT_SECONDS,
            )
        except FileNotFoundError as error:
            raise GitError("git is not installed") from error
        except subprocess.TimeoutExpired as error:
            raise GitError(f"git {arguments[0]} took more than {GIT_SECONDS:.0f} s") from error
        if done.returncode:
            said = done.stderr.strip() or f"git {arguments[0]} failed"
            lines = said.splitlines()
            # a refused push begins with the address
            reason = next((line for line in lines if line.startswith(GIT_REASONS)), lines[0])
            raise GitError(reason.strip().removeprefix("fatal: ").removeprefix("error: "))
        return done.stdout.strip()


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

    @property
    def error(self) -> str:
        """What DVC gives as its reason, or the last it said."""
        said = [line for line in self.lines if line.strip()] or ["no output"]
        reasons = [line for line in said if line.startswith("ERROR: ")] or said
        return reasons[-1].removeprefix("ERROR: ")


def is_error_line(stage: str, line: str) -> bool:
    """Whether a line of a stage's output is its error message, or DVC's word on the failure."""
    return line.startswith((f"{stage.partition('-')[0]}: ", "ERROR: failed to reproduce "))


def stage_environment() -> dict[str, str]:
    """Return the environment of DVC and the stages: `python` is this one, output comes at once."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"}
