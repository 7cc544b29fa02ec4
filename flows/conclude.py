"""What follows the stages: record their result, register it, decide on it, and announce it."""

import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
from mlflow.entities.model_registry import ModelVersion

from flows.project import Project
from flows.promotion import CHAMPION, DECISION_TAG, REASONS_TAG, TIME_TAG, promote
from flows.record import Recorded, record
from flows.registry import aliases, register
from tasks.gate import Verdict

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 10.0
ANNOUNCED_TAG = "announced"
"""Of a version: when the promotion that was announced was decided."""


@dataclass(frozen=True)
class Concluded:
    recorded: Recorded
    version: ModelVersion
    verdict: Verdict
    champion: str | None
    """The version in charge now."""


def conclude(project: Project, step: Callable[[Any], Any] = lambda function: function) -> Concluded:
    """Conclude the project's present state; what was done before is not done again.

    `step` wraps each function, e.g. as a Prefect task.
    """
    recorded = step(record)(project)
    version = step(register)(project, recorded.run_id)
    verdict = step(promote)(project, version)
    announce(project, version)
    return Concluded(recorded, version, verdict, aliases(project).get(CHAMPION))


def announce(project: Project, version: ModelVersion) -> None:
    """Announce a promotion once, even one whose process was killed before it could."""
    name, number = version.name, str(version.version)
    tags = project.client.get_model_version(name, number).tags
    if tags.get(DECISION_TAG) != "promoted" or tags.get(ANNOUNCED_TAG) == tags[TIME_TAG]:
        return
    verdict = Verdict("promoted", tuple(tags[REASONS_TAG].splitlines()))
    text = verdict.in_words(f"{name} v{number}")
    notify(project.settings.retrain.webhook, project.root, "promoted", text)
    project.client.set_model_version_tag(name, number, ANNOUNCED_TAG, tags[TIME_TAG])


def notify(
    webhook: str | None, root: Path, event: Literal["failed", "promoted", "rolled back"], text: str
) -> None:
    """POST a small JSON to the webhook, if there is one; trouble with it is only logged.

    FIRSTKD_WEBHOOK in the environment takes precedence over `webhook`, that of the settings: many
    such addresses are secrets.
    """
    url = os.environ.get("FIRSTKD_WEBHOOK") or webhook
    if not url:
        return
    message = {"event": event, "project": str(root), "host": socket.gethostname(), "text": text}
    try:
        httpx.post(url, json=message, timeout=TIMEOUT_SECONDS).raise_for_status()
    except httpx.HTTPStatusError as error:  # whose own words repeat the address
        log.warning("the webhook answered with status %d", error.response.status_code)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        log.warning("the webhook cannot be reached: %s", error)
