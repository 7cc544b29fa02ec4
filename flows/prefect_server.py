"""The Prefect server: one that lasts, which the user has named, or the one that a run embeds."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import get_current_settings

from firstkd.errors import PipelineError


def configured_server() -> str | None:
    """Return the address of the lasting Prefect server, or None where a run starts its own.

    Raises PipelineError when the one that is named does not answer.
    """
    url = get_current_settings().api.url
    if url is None:
        return None
    try:
        httpx.get(f"{url}/health", timeout=10).raise_for_status()
    except httpx.HTTPError as error:
        raise PipelineError(
            f"the Prefect server at {url} does not answer ({error}); start it with "
            "`prefect server start --background`, or unset PREFECT_API_URL to run without one"
        ) from error
    return str(url)


@contextmanager
def server_starting() -> Iterator[None]:
    """Have a server by the end of the body: the embedded one is a process that starts meanwhile.

    Raises PipelineError, before the body, when a lasting one is named and does not answer.
    """
    if configured_server():
        yield
        return
    with ThreadPoolExecutor(max_workers=1) as pool:
        started = pool.submit(SubprocessASGIServer().start)  # the one that a flow run would start
        yield
        started.result()
