"""Every registered student in words: what it showed, what was decided on it, who is in charge."""

from collections.abc import Iterator
from datetime import UTC, datetime

from mlflow.entities.model_registry import ModelVersion

from firstkd.settings import Settings
from flows import promotion, registry
from flows.tracking import Tracking


def history(settings: Settings, tracking: Tracking) -> Iterator[str]:
    """Yield lines about each version, the newest first."""
    name = settings.record.registered_model
    by_version: dict[str, list[str]] = {}
    for alias, number in registry.aliases(tracking, name).items():
        by_version.setdefault(number, []).append(alias)
    for version in registry.versions(tracking, name):
        roles = sorted(by_version.get(str(version.version), []))
        yield _headline(version) + (f"  [{', '.join(roles)}]" if roles else "")
        for reason in version.tags.get(promotion.REASONS_TAG, "").splitlines():
            yield f"      {reason}"


def _headline(version: ModelVersion) -> str:
    tags = version.tags
    made = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
    words = [
        f"v{version.version}",
        f"{made:%Y-%m-%d %H:%M} UTC",
        f"accuracy {tags.get('test_accuracy', '–')}",
        f"ECE {tags.get('test_ece', '–')}",
        f"commit {tags.get('git_commit', '–')[:8]}",
        tags.get(promotion.DECISION_TAG, "not decided on"),
    ]
    return "  ".join(words)
