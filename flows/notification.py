"""Tell someone outside when a retraining failed or the champion changed."""

import logging
import os
import socket
from typing import Literal

import httpx
from mlflow.entities.model_registry import ModelVersion

from flows.gate import Verdict
from flows.promotion import DECISION_TAG, REASONS_TAG, TIME_TAG
from flows.tracking import Tracking
from flows.workspace import Workspace

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 10.0
Event = Literal["failed", "promoted", "rolled back"]


ANNOUNCED_TAG = "announced"
"""Of a version: when the promotion that was told of was decided."""


def is_announced(version: ModelVersion) -> bool:
    """Whether nothing is left to tell of a version: it was not promoted, or that was told."""
    tags = version.tags
    return tags.get(DECISION_TAG) != "promoted" or tags.get(ANNOUNCED_TAG) == tags[TIME_TAG]


def announce(
    webhook: str | None, workspace: Workspace, tracking: Tracking, version: ModelVersion
) -> None:
    """Tell of a promotion once, also of one whose process was killed before it could."""
    name, number = version.name, str(version.version)
    version = tracking.client.get_model_version(name, number)
    if is_announced(version):
        return
    verdict = Verdict("promoted", tuple(version.tags[REASONS_TAG].splitlines()))
    notify(webhook, workspace, "promoted", verdict.in_words(f"{name} v{number}"))
    decided = version.tags[TIME_TAG]
    tracking.client.set_model_version_tag(name, number, ANNOUNCED_TAG, decided)


def notify(webhook: str | None, workspace: Workspace, event: Event, text: str) -> None:
    """POST a small JSON to the webhook, if there is one; a trouble with it is only logged.

    FIRSTKD_WEBHOOK in the environment goes before `webhook`, that of the settings: many such
    addresses are secrets.
    """
    url = os.environ.get("FIRSTKD_WEBHOOK") or webhook
    if not url:
        return
    message = {
        "event": event,
        "project": str(workspace.root),
        "host": socket.gethostname(),
        "text": text,
    }
    try:
        httpx.post(url, json=message, timeout=TIMEOUT_SECONDS).raise_for_status()
    except httpx.HTTPStatusError as error:  # whose own words repeat the address
        log.warning("the webhook answered with status %d", error.response.status_code)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        log.warning("the webhook cannot be reached: %s", error)
