"""The registry in one hand: a lease that holds for every workspace that shares an MLflow server.

MLflow knows no transaction over versions, tags and aliases, but it gives a model's name to one
alone: who can create `NAME.lease` holds the registry of NAME, for the seconds that the model is
there.
"""

import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from flows.tracking import Tracking

LEASE_SECONDS = 30.0
"""After so long under one holder it is taken over: its process was killed."""
POLL_SECONDS = 0.2
HOLDER_TAG = "holder"


@contextmanager
def registry_lease(tracking: Tracking, name: str) -> Iterator[None]:
    """Hold the versions and aliases of the registered model `name`; waits for another holder.

    For some quick requests only: what takes long is done before.
    """
    client, lease = tracking.client, f"{name}.lease"
    holder = f"process {os.getpid()} on {socket.gethostname()} ({uuid.uuid4().hex})"
    seen, since = holder, time.monotonic()
    while (other := _take(client, lease, holder)) != holder:
        if other != seen:
            seen, since = other, time.monotonic()
        elif time.monotonic() - since > LEASE_SECONDS:
            _give_back(client, lease, other)
        time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        _give_back(client, lease, holder)


def _take(client: MlflowClient, lease: str, holder: str) -> str:
    """Take the lease where it is free; return who holds it now."""
    try:
        client.create_registered_model(lease, {HOLDER_TAG: holder})
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
            raise
        return _holder(client, lease)  # also ours: a request whose answer is lost is repeated
    return holder


def _give_back(client: MlflowClient, lease: str, holder: str) -> None:
    if _holder(client, lease) == holder:
        client.delete_registered_model(lease)


def _holder(client: MlflowClient, lease: str) -> str:
    """Return who holds a lease; nobody is the empty string."""
    try:
        tags: dict[str, str] = client.get_registered_model(lease).tags
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return ""
    return tags[HOLDER_TAG]
