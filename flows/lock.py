"""One writer at a time for the versions and aliases of a registered model.

Writers to a database or server on this machine exclude each other with a file lock, which the
system releases when its holder dies. Writers to an MLflow server may be on several machines: they
share a concurrency limit of one on their Prefect server, which frees the slot of a dead holder.
(Retrainings are kept apart by `Workspace.exclusive`, and by Prefect's limits.)
"""

import asyncio
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from urllib.parse import urlsplit

from firstkd.errors import PipelineError
from firstkd.files import locked, open_lock
from flows.tracking import Tracking

LEASE_SECONDS = 60.0
"""Prefect frees the slot of a holder that has not renewed it for this long."""
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


@contextmanager
def registry_lock(tracking: Tracking, name: str) -> Iterator[None]:
    """Be the only writer of the registered model `name`; waits for any other.

    Hold it only for a few quick requests. Raises PipelineError as `check_lock` does.
    """
    url, file = _shared_prefect(tracking), _lock_file(tracking)
    with locked(file) if file else nullcontext(), _slot(url, name) if url else nullcontext():
        yield


@contextmanager
def _slot(url: str, name: str) -> Iterator[None]:
    import httpx
    from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
    from prefect.concurrency.sync import concurrency

    limit = f"registry-{re.sub(r'[^A-Za-z0-9_.-]', '-', name)}"
    try:
        _create(limit)
        with concurrency(limit, strict=True, lease_duration=LEASE_SECONDS):
            yield
    except (httpx.HTTPError, ConcurrencySlotAcquisitionError, asyncio.CancelledError) as error:
        reason = str(error) or "the lock could not be renewed"  # Prefect then cancels its holder
        raise PipelineError(
            f"Prefect at {url} failed while {name} was locked ({reason}); try again"
        ) from error


def check_lock(tracking: Tracking) -> None:
    """Raise PipelineError if nothing keeps the writers to this MLflow server apart."""
    _shared_prefect(tracking)
    if file := _lock_file(tracking):
        os.close(open_lock(file))


def _shared_prefect(tracking: Tracking) -> str | None:
    """Return the Prefect server that the writers share; None if all are on this machine."""
    if tracking.database:
        return None
    from flows.prefect_server import lasting_server

    url = lasting_server()
    if url is None and _lock_file(tracking) is None:
        raise PipelineError(
            f"other machines may write to MLflow at {tracking.shown}, but only one may change its "
            "registry at a time: start a Prefect server with `prefect server start` and set "
            "PREFECT_API_URL to its address on every machine"
        )
    return url


def _lock_file(tracking: Tracking) -> Path | None:
    if tracking.database:
        return tracking.database.with_name(f"{tracking.database.name}.lock")
    if urlsplit(tracking.uri).hostname not in LOOPBACK:
        return None
    digest = hashlib.sha256(tracking.uri.encode()).hexdigest()
    return Path(tempfile.gettempdir()) / f"firstkd-{digest[:16]}.lock"


def _create(limit: str) -> None:
    from prefect import get_client
    from prefect.exceptions import ObjectAlreadyExists, PrefectHTTPStatusError

    # another process may create it at the same moment; if it is missing, `strict` raises
    with (
        get_client(sync_client=True) as client,
        suppress(ObjectAlreadyExists, PrefectHTTPStatusError),
    ):
        client.upsert_global_concurrency_limit_by_name(limit, 1)
