"""What follows the stages: record their result, register it, decide on it, and announce it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlflow.entities.model_registry import ModelVersion

from firstkd.notify import notify
from flows.project import Project
from flows.promotion import CHAMPION, DECISION_TAG, REASONS_TAG, TIME_TAG, promote
from flows.record import Recorded, record
from flows.registry import aliases, register
from tasks.gate import Verdict

ANNOUNCED_TAG = "announced"
"""Version tag: when the announced promotion was decided."""


@dataclass(frozen=True)
class Concluded:
    recorded: Recorded
    version: ModelVersion
    verdict: Verdict
    champion: str | None
    """The version in charge now."""


def conclude(project: Project, step: Callable[[Any], Any] = lambda function: function) -> Concluded:
    """Conclude the project's current state, without repeating what is already done.

    `step` wraps each function, e.g. as a Prefect task.
    """
    recorded = step(record)(project)
    version = step(register)(project, recorded.run_id)
    verdict = step(promote)(project, version)
    announce(project, version)
    return Concluded(recorded, version, verdict, aliases(project).get(CHAMPION))


def announce(project: Project, version: ModelVersion) -> None:
    """Announce a promotion once, even if its process was killed before it could."""
    name, number = version.name, str(version.version)
    tags = project.client.get_model_version(name, number).tags
    if tags.get(DECISION_TAG) != "promoted" or tags.get(ANNOUNCED_TAG) == tags[TIME_TAG]:
        return
    verdict = Verdict("promoted", tuple(tags[REASONS_TAG].splitlines()))
    text = verdict.in_words(f"{name} v{number}")
    notify(project.settings.retrain.webhook, project.root, "promoted", text)
    project.client.set_model_version_tag(name, number, ANNOUNCED_TAG, tags[TIME_TAG])
