"""Run a command as a group of processes that ends as a whole, with its output streamed."""

import codecs
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

GRACE_SECONDS = 30.0
"""Between SIGTERM and SIGKILL: a stage removes what it has half-written in it."""
GUARDIAN = """
read -r _
kill -s TERM -- "-$1"
left=300
while kill -s 0 -- "-$1" && [ "$left" -gt 0 ]; do sleep 0.1; left=$((left - 1)); done
kill -s KILL -- "-$1"
"""
"""A shell that waits for the end of its input, i.e. of this process, and then ends a group."""


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs; one that was killed and only waits for its parent to
    take note of it does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class OutputSink(Protocol):
    """Takes the output of a stage while it runs."""

    def line(self, text: str) -> None:
        """One whole line; of a progress bar, its last state."""

    def progress(self, text: str) -> None:
        """The state of a progress bar, to be overwritten by what comes next."""


def run_group(command: list[str], cwd: Path, env: dict[str, str], sink: OutputSink) -> int:
    """Run to the end and return the exit code, stdout and stderr going to `sink`.

    On any exception here (Ctrl-C, a cancelled or timed-out Prefect task, an error in `sink`) the
    command and everything it started is ended before the exception goes on. Where this process is
    killed outright, a guardian ends them.
    """
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout as pipe, guardian(process.pid):
        try:
            splitter = LineSplitter(sink)
            for chunk in _chunks(pipe.fileno()):
                splitter.feed(chunk)
            splitter.close()
            return process.wait()
        except BaseException:
            _end_group(process, pipe.fileno())
            raise


@contextmanager
def guardian(group: int) -> Iterator[None]:
    """Have a group of processes ended where this process is killed during the body."""
    shell = subprocess.Popen(
        ["sh", "-c", GUARDIAN, "sh", str(group)],
        stdin=subprocess.PIPE,  # which the system closes when this process ends, however it ends
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        shell.kill()
        shell.communicate()


class LineSplitter:
    """Cuts raw output into lines and states of progress bars, which rewrite their line with CR."""

    def __init__(self, sink: OutputSink) -> None:
        self._sink = sink
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._rest = ""

    def feed(self, chunk: bytes) -> None:
        *lines, rest = (self._rest + self._decoder.decode(chunk)).split("\n")
        for line in lines:
            self._sink.line(_visible(line))
        self._rest = _visible(rest)
        if self._rest:
            self._sink.progress(self._rest)

    def close(self) -> None:
        if self._rest:
            self._sink.line(self._rest)


def _visible(text: str) -> str:
    """Return what a terminal would show of a line in which bars overwrote each other."""
    return text.rstrip("\r").rpartition("\r")[2]


def _chunks(pipe: int, seconds: float | None = None) -> Iterator[bytes]:
    """Yield output until every process that holds the pipe is gone, or `seconds` have passed.

    It wakes up twice a second so that an exception sent to this thread is raised in time.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    while deadline is None or time.monotonic() < deadline:
        if select.select([pipe], [], [], 0.5)[0]:
            chunk = os.read(pipe, 65536)
            if not chunk:
                return
            yield chunk


def _end_group(process: subprocess.Popen[bytes], pipe: int) -> None:
    try:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        for _ in _chunks(pipe, GRACE_SECONDS):
            pass
    finally:  # also when the user does not want to wait
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
