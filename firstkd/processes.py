"""Run a command as a process group that ends as a whole, and stream its output."""

import codecs
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol

GUARDIAN = """
read -r _
kill -s TERM -- "-$1"
left=$(($2 * 10))
while kill -s 0 -- "-$1" && [ "$left" -gt 0 ]; do sleep 0.1; left=$((left - 1)); done
kill -s KILL -- "-$1"
"""
"""A shell that ends a process group once its input closes, by this process or, if this process is
killed, by the system."""


class OutputSink(Protocol):
    """Receives the output of a stage while it runs."""

    def line(self, text: str) -> None:
        """Receive a whole line; of a progress bar, its last state."""

    def progress(self, text: str) -> None:
        """Receive the state of a progress bar, to be overwritten by what comes next."""


@contextmanager
def group(
    command: list[str], stop_seconds: float, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command in a separate process group, which does not outlive the body.

    If the command has not been waited for by then (Ctrl-C, a timed-out task, SIGKILL of this
    process), its group gets SIGTERM, and SIGKILL `stop_seconds` later. A second Ctrl-C kills it.
    """
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, **options)
    guardian = subprocess.Popen(
        ["sh", "-c", GUARDIAN, "sh", str(process.pid), str(round(stop_seconds))],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert guardian.stdin is not None
    try:
        yield process
    finally:
        try:
            if process.returncode is None:
                guardian.stdin.close()
                _wait(guardian, process)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            guardian.kill()
            guardian.wait()
            process.wait()
            if process.stdout:
                process.stdout.close()


def _wait(guardian: subprocess.Popen[bytes], process: subprocess.Popen[bytes]) -> None:
    """Wait for the guardian, and drain the output so that the process does not block on it."""
    while guardian.poll() is None:
        process.poll()  # reap it: a zombie leader would count as alive
        if process.stdout and select.select([process.stdout], [], [], 0.05)[0]:
            os.read(process.stdout.fileno(), 65536)
        time.sleep(0.01)


def run_group(
    command: list[str], cwd: Path, env: Mapping[str, str], sink: OutputSink, stop_seconds: float
) -> int:
    """Run a command to its end with stdout and stderr going to `sink`; return the exit code."""
    options = {"cwd": cwd, "env": env, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with group(command, stop_seconds, **options) as process:
        assert process.stdout is not None
        splitter = LineSplitter(sink)
        for chunk in _chunks(process.stdout):
            splitter.feed(chunk)
        splitter.close()
        return process.wait()


def _chunks(pipe: IO[bytes]) -> Iterator[bytes]:
    """Yield output until every process that holds the pipe is gone."""
    while True:
        # wake up twice a second, so that an exception sent to this thread is raised in time
        if select.select([pipe], [], [], 0.5)[0]:
            chunk = os.read(pipe.fileno(), 65536)
            if not chunk:
                return
            yield chunk


class LineSplitter:
    """Splits raw output into lines and states of progress bars, which rewrite a line with CR."""

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
