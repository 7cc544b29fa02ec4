"""Tell someone outside when a retraining failed or the champion changed."""

import logging
import os
import socket
from typing import Literal

import httpx
from mlflow.entities.model_registry import ModelVersion

from flows.gate import Verdict
from flows.workspace import Workspace

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 10.0


Event = Literal["failed", "promoted", "rolled back"]


def notify_of_promotion(
    webhook: str | None, workspace: Workspace, version: ModelVersion, verdict: Verdict
) -> None:
    if verdict.outcome == "promoted":
        notify(
            webhook, workspace, "promoted", verdict.in_words(f"{version.name} v{version.version}")
        )


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
