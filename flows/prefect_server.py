"""The Prefect server that the user has named, if any."""

import httpx
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
