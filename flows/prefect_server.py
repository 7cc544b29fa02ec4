"""The Prefect server: a lasting one that the user names, or one that ends with the run."""

import atexit
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import httpx
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

from firstkd.errors import PipelineError
from firstkd.processes import group
from firstkd.proxies import check_proxies

START_SECONDS = 180.0
"""Long enough for a server on a busy machine to start and create its database."""
END_SECONDS = 20.0
ANSWER_SECONDS = 20.0
"""Long enough for a lasting server that was started a moment ago."""
# its scheduler would schedule the deployments of other servers that share its database
COMMAND = ["prefect", "server", "start", "--no-ui", "--no-scheduler", "--no-late-runs"]

_own_server: str | None = None


def lasting_server() -> str | None:
    """Return the address of the Prefect server that the user has named, if any."""
    url = get_current_settings().api.url
    return None if url is None or str(url) == _own_server else str(url)


def answering_server() -> str | None:
    """Return the lasting server's address; raises PipelineError if it does not answer."""
    check_proxies()
    url = lasting_server()
    if url and not _answers(url, ANSWER_SECONDS):
        raise PipelineError(
            f"the Prefect server at {url} does not answer; start it with `prefect server start`, "
            "or unset PREFECT_API_URL to run without one"
        )
    return url


@contextmanager
def server_starting() -> Iterator[None]:
    """Start a server while the body runs, unless a lasting one is named; then wait for it.

    It ends with this process, even if that is killed; Prefect's ephemeral server would outlive it.
    Raises PipelineError if a server does not answer or does not start.
    """
    global _own_server
    if answering_server():
        yield
        return
    _check_home()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    _own_server = f"http://127.0.0.1:{port}/api"
    command = [sys.executable, "-m", *COMMAND, "--host", "127.0.0.1", "--port", str(port)]
    ending = ExitStack()
    atexit.register(ending.close)  # after Prefect's own handlers, which send the rest of the log
    said = ending.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - closed by `ending`
    process = ending.enter_context(group(command, END_SECONDS, stdout=said, stderr=said))
    ending.enter_context(temporary_settings({PREFECT_API_URL: _own_server}))
    yield
    if not _answers(_own_server, START_SECONDS, lambda: process.poll() is None):
        said.seek(0)
        last = said.read().decode(errors="replace").strip().splitlines()[-1:] or ["no output"]
        raise PipelineError(f"Prefect's server at {_own_server} did not start: {last[0]}")


def _check_home() -> None:
    """Raise PipelineError unless Prefect can keep its database in its home folder."""
    home = get_current_settings().home
    if "?" in str(home):
        raise PipelineError(
            f"Prefect would read the ? in {home} as a query and keep its database elsewhere; set "
            "PREFECT_HOME to a path without one"
        )
    try:
        home.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=home).close()
    except OSError as error:
        raise PipelineError(
            f"Prefect keeps its database in {home}, which is not writable "
            f"({error.strerror}); set PREFECT_HOME to a writable folder"
        ) from error


def _answers(url: str, seconds: float, goes_on: Callable[[], bool] = lambda: True) -> bool:
    """Return whether the server answers within `seconds`; give up once `goes_on` is false."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return httpx.get(f"{url}/health", timeout=10).is_success
        except httpx.ConnectError:
            if time.monotonic() > deadline or not goes_on():
                return False
        except httpx.HTTPError:
            return False
        time.sleep(0.2)
