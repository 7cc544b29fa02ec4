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
from flows.processes import is_alive
from flows.tracking import Tracking

log = logging.getLogger(__name__)

LEASE_SECONDS = 300.0
"""After which a holder elsewhere is taken for dead: longer than MLflow's client repeats a request
that gets no answer. One on this machine whose process is gone is not waited for."""
POLL_SECONDS = 0.2
SAID_AT = 25
"""Polls of one holder, after which whoever waits is told for whom."""
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
        if not _is_first(_queue(client, lease), holder):
            raise PipelineError(
                f"{name} was changed by another process while this one stood still; run it again"
            )

    try:
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
    """Draw a ticket and return when it is its turn; a dead holder's ticket is deleted.

    Ours may be, too, where this process stood still: then it draws another.
    """
    seen, polls = "", 0  # answered ones: while a server is away no time passes for anybody
    while not _is_first(queue := _queue(client, lease), holder):
        if holder not in (ticket.tags[HOLDER_TAG] for ticket in queue):
            _draw(client, lease, holder)
            continue
        tags = queue[0].tags
        seen, polls = tags[HOLDER_TAG], polls + 1 if tags[HOLDER_TAG] == seen else 0
        if _is_dead(tags) or polls * POLL_SECONDS > LEASE_SECONDS:
            _give_back(client, lease, seen)
            continue
        if polls == SAID_AT:
            who = f"process {tags[PROCESS_TAG]} on {tags[HOST_TAG]}"
            log.warning("waiting for %s, which changes %s", who, lease)
        time.sleep(POLL_SECONDS)


def _queue(client: MlflowClient, lease: str) -> list[ModelVersion]:
    """Return the tickets in the order of their turns."""
    tickets = client.search_model_versions(f"name = '{lease}'")
    return sorted(tickets, key=lambda ticket: int(ticket.version))


def _is_first(queue: list[ModelVersion], holder: str) -> bool:
    return bool(queue) and queue[0].tags[HOLDER_TAG] == holder


def _give_back(client: MlflowClient, lease: str, holder: str) -> None:
    """Delete a holder's tickets, of which a repeated request may have drawn two."""
    for ticket in _queue(client, lease):
        if ticket.tags[HOLDER_TAG] == holder:
            try:
                client.delete_model_version(lease, str(ticket.version))
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # deleted by another already
                    raise


def _is_dead(tags: dict[str, str]) -> bool:
    """Whether a holder was a process of this machine that is no more."""
    return tags[MACHINE_TAG] == _machine() and not is_alive(int(tags[PROCESS_TAG]))


def _machine() -> str:
    """Return what those who see each other's processes have in common: boot and container."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
