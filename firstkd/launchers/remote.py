"""Launching on several hosts, however they are reached: start, watch and end them as one.

The project's folder lies on a file system that all hosts share. A host that fails reports the
reason there; only the failure that caused the others is shown.
"""

import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, NamedTuple

from firstkd.files import read_json
from firstkd.launchers.base import Job, Launcher
from firstkd.launchers.host import BEGUN
from firstkd.launchers.torchrun import STOPPED, Failure, RankError, end_with_parent

CAUSE_SECONDS = 15.0
"""Time after the first failure for the host that caused it to report, too."""
END_SECONDS = 30.0
"""Time beyond a job's `stop_seconds` before the commands that reach its hosts are killed."""
KEPT_BYTES = 4096
"""Bytes kept of a command's output, enough for its last line."""


class Remote(Launcher):
    stops_by_signal: ClassVar[bool]
    """Whether what reaches the hosts passes SIGTERM on; if not, they stop when its input ends."""

    @abstractmethod
    def commands(self, job: Job, place: Path) -> Sequence["Reach"]:
        """Return the commands that start a job on all hosts. The hosts report in the folder
        `place`, which is named after the launch."""

    def launch(self, job: Job) -> None:
        with _meeting(job.logs / "hosts") as place:
            failures = self._run(self.commands(job, place), place, job.stop_seconds)
        if failures:
            min(failures, key=lambda failure: failure.order).end()

    def _run(self, reaches: Sequence["Reach"], place: Path, stop_seconds: float) -> list[Failure]:
        """Run commands until all have ended, and return why they failed; one host's failure ends
        the others."""
        running = [_Command(reach, self.stops_by_signal) for reach in reaches]
        ended = list[_Command]()
        give_up = float("inf")
        try:
            while len(ended) < len(running) and time.monotonic() < give_up:
                time.sleep(0.1)
                ended = [command for command in running if command.code is not None]
                if any(command.code for command in ended) or any(place.glob("*.json")):
                    give_up = min(give_up, time.monotonic() + CAUSE_SECONDS)
        finally:
            has_begun = any(place.glob(f"*{BEGUN}"))
            for command in running:
                command.stop(by_signal=self.stops_by_signal or not has_begun)
            for command in running:
                command.wait(stop_seconds + END_SECONDS)
        told = {file.stem: Failure(**read_json(file)) for file in place.glob("*.json")}
        return [*told.values(), *(c.failure() for c in ended if c.code and not c.hosts & {*told})]


@contextmanager
def _meeting(folder: Path) -> Iterator[Path]:
    """Make the folder in which hosts report, named after the launch."""
    shutil.rmtree(folder, ignore_errors=True)  # left by a launch that was killed
    place = folder / f"firstkd-{secrets.token_hex(4)}"
    place.mkdir(parents=True)
    try:
        yield place
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Reach(NamedTuple):
    """A command that starts the job on one or several hosts and ends when they have ended."""

    name: str
    hosts: range
    command: Sequence[str]


class _Command:
    """A running command; its hosts' output is shown here."""

    def __init__(self, reach: Reach, ends_with_this: bool) -> None:
        self.name, self.hosts, self._last = reach.name, {*map(str, reach.hosts)}, b""
        try:
            self._process = subprocess.Popen(
                reach.command,
                stdin=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for this process, which waits for the hosts
                preexec_fn=end_with_parent if ends_with_this else None,
            )
        except FileNotFoundError as error:
            raise RankError(
                f"machine.launcher: {error.filename} is not installed here, so {self.name} cannot "
                "be reached"
            ) from error
        self._shown = threading.Thread(target=self._show)
        self._shown.start()

    def _show(self) -> None:
        assert self._process.stderr is not None
        while said := os.read(self._process.stderr.fileno(), 65536):
            self._last = (self._last + said)[-KEPT_BYTES:]
            sys.stderr.buffer.write(said)
            sys.stderr.buffer.flush()

    @property
    def code(self) -> int | None:
        return self._process.poll()

    def stop(self, by_signal: bool) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        if by_signal and self.code is None:
            self._process.terminate()

    def wait(self, seconds: float) -> None:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._process.wait()
        self._shown.join()

    def failure(self) -> Failure:
        code = self.code
        if code == STOPPED:
            return Failure("stopped", "")
        said = self._last.decode(errors="replace").strip().splitlines() or ["no error message"]
        return Failure("killed", f"{self.name} ended with exit code {code}: {said[-1]}")
