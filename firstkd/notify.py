"""Notifications to a webhook."""

import logging
import os
import socket
from pathlib import Path
from typing import Literal

import httpx

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 10.0


def notify(
    webhook: str | None,
    root: Path,
    event: Literal["failed", "promoted", "rolled back", "drift"],
    text: str,
) -> None:
    """POST a small JSON object to the webhook, if there is one; failures are only logged.

    FIRSTKD_WEBHOOK in the environment takes precedence over `webhook` from the settings: many
    such addresses are secrets.
    """
    url = os.environ.get("FIRSTKD_WEBHOOK") or webhook
    if not url:
        return
    message = {"event": event, "project": str(root), "host": socket.gethostname(), "text": text}
    try:
        httpx.post(url, json=message, timeout=TIMEOUT_SECONDS).raise_for_status()
    except httpx.HTTPStatusError as error:  # its own message repeats the address
        log.warning("the webhook answered with status %d", error.response.status_code)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        log.warning("the webhook cannot be reached: %s", error)
