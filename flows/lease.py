"""The registry in one hand: a lease that holds for every workspace that shares an MLflow server.

MLflow knows no transaction over versions, tags and aliases, but it numbers the versions of a model,
never twice the same. Versions of the registered model `NAME.lease` are tickets: the lowest that is
there holds the registry of NAME. A ticket is deleted when it has been used, mostly within a second.
"""

import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from requests.exceptions import RequestException
from sqlalchemy.exc import SQLAlchemyError

from firstkd.errors import PipelineError
from flows.tracking import Tracking

log = logging.getLogger(__name__)

LEASE_SECONDS = 300.0
"""After which a holder elsewhere is taken for dead: longer than MLflow's client repeats a request
that gets no answer. One on this machine whose process is gone is not waited for."""
POLL_SECONDS = 0.2
SAY_SECONDS = 5.0
HOLDER_TAG, PROCESS_TAG, MACHINE_TAG, HOST_TAG = "holder", "process", "machine", "host"
SOURCE = "lease:/ticket"
"""A version needs one; there is nothing at this address."""


@contextmanager
def registry_lease(tracking: Tracking, name: str) -> Iterator[Callable[[], None]]:
    """Hold the versions and aliases of the registered model `name`; waits for other holders.

    For some quick requests only: what takes long is done before. Yields a function to call before
    a step that two must not take: it raises PipelineError when the lease was taken over meanwhile,
    because this process had stood still.
    """
    client, lease, holder = tracking.client, f"{name}.lease", uuid.uuid4().hex

    def check() -> None:
        if _first(client, lease).tags[HOLDER_TAG] != holder:
            raise PipelineError(
                f"{name} was changed by another process while this one stood still; run it again"
            )

    try:
        _draw(client, lease, holder)
        _wait(client, lease, holder)
        yield check
    finally:
        try:
            _give_back(client, lease, holder)
        except (MlflowException, SQLAlchemyError, RequestException) as error:
            # what was done under it stands all the same
            log.warning("%s could not be given back and holds others up: %s", lease, error)


def _draw(client: MlflowClient, lease: str, holder: str) -> None:
    tags = {
        HOLDER_TAG: holder,
        PROCESS_TAG: str(os.getpid()),
        MACHINE_TAG: _machine(),
        HOST_TAG: socket.gethostname(),
    }
    if not client.search_registered_models(f"name = '{lease}'"):
        try:
            client.create_registered_model(lease, description="Tickets of who changes the registry")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # by another in the same second
                raise
    client.create_model_version(lease, SOURCE, tags=tags)


def _wait(client: MlflowClient, lease: str, holder: str) -> None:
    """Return when it is our turn; a dead holder's ticket is deleted."""
    seen, waited, said = "", 0.0, False
    while (first := _first(client, lease)).tags[HOLDER_TAG] != holder:
        if first.version != seen:
            seen, waited = first.version, 0.0
        if _is_dead(first.tags) or waited > LEASE_SECONDS:
            _give_back(client, lease, first.tags[HOLDER_TAG])
            continue
        if waited > SAY_SECONDS and not said:
            process, host = first.tags[PROCESS_TAG], first.tags[HOST_TAG]
            log.warning("waiting for process %s on %s, which changes %s", process, host, lease)
            said = True
        time.sleep(POLL_SECONDS)
        waited += POLL_SECONDS  # of answered requests: a server that is away counts for nobody


def _first(client: MlflowClient, lease: str) -> ModelVersion:
    return min(_tickets(client, lease), key=lambda ticket: int(ticket.version))


def _tickets(client: MlflowClient, lease: str) -> list[ModelVersion]:
    return list(client.search_model_versions(f"name = '{lease}'"))


def _give_back(client: MlflowClient, lease: str, holder: str) -> None:
    """Delete a holder's tickets, of which a repeated request may have drawn two."""
    for ticket in _tickets(client, lease):
        if ticket.tags[HOLDER_TAG] == holder:
            try:
                client.delete_model_version(lease, str(ticket.version))
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # deleted by another already
                    raise


def _is_dead(tags: dict[str, str]) -> bool:
    """Whether a holder was a process of this machine that is no more."""
    return tags[MACHINE_TAG] == _machine() and not Path("/proc", tags[PROCESS_TAG]).exists()


def _machine() -> str:
    """Return what those who see each other's processes have in common: boot and container."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
