"""The Prefect server: one that lasts, which the user has named, or one that ends with the run."""

import atexit
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
from prefect.context import refresh_global_settings_context
from prefect.settings import get_current_settings

from firstkd.errors import PipelineError
from flows.processes import guardian

log = logging.getLogger(__name__)

PROCESS = Path(__file__).with_name("prefect_process.py")
START_SECONDS = 180.0
"""For a server that starts on a busy machine and makes its database."""

END_SECONDS = 20.0
ANSWER_SECONDS = 20.0
"""For a lasting server that was started the moment before."""


def configured_server() -> str | None:
    """Return the address of the lasting Prefect server, or None where a run starts its own.

    Raises PipelineError when the one that is named does not answer.
    """
    url = get_current_settings().api.url
    if url is None:
        return None
    deadline, waits = time.monotonic() + ANSWER_SECONDS, False
    while True:
        try:
            httpx.get(f"{url}/health", timeout=10).raise_for_status()
            return str(url)
        except httpx.HTTPError as error:
            if not isinstance(error, httpx.ConnectError) or time.monotonic() > deadline:
                raise PipelineError(
                    f"the Prefect server at {url} does not answer ({error}); start it with "
                    "`prefect server start`, or unset PREFECT_API_URL to run without "
                    "one"
                ) from error
        if not waits:
            log.warning("waiting for the Prefect server at %s", url)
        waits = True
        time.sleep(0.5)


@contextmanager
def server_starting() -> Iterator[None]:
    """Have a server by the end of the body: one of this process starts meanwhile.

    Prefect would start one like it, but only once all of Prefect is imported, and would leave it
    behind where the run is killed. Raises PipelineError, before the body, when a lasting one is
    named and does not answer, and after it when this one does not start.
    """
    if configured_server():
        yield
        return
    with socket.create_server(("127.0.0.1", 0)) as listening:  # so whoever asks early waits
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
        process = subprocess.Popen(
            [sys.executable, "-P", str(PROCESS), str(listening.fileno())],
            pass_fds=[listening.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    ending = ExitStack()
    ending.enter_context(guardian(process.pid))
    ending.callback(_end, process)
    atexit.register(ending.close)
    os.environ["PREFECT_API_URL"] = url
    refresh_global_settings_context()
    yield
    try:
        httpx.get(f"{url}/health", timeout=START_SECONDS).raise_for_status()
    except httpx.HTTPError as error:
        raise PipelineError(
            f"Prefect's server did not start ({error}); what it said is above"
        ) from error


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
