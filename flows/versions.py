"""What was measured of registered versions, to stand beside the models of the present state."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlflow.entities.model_registry import ModelVersion

from firstkd.errors import PipelineError
from firstkd.files import read_json
from firstkd.settings import Settings
from flows import registry
from flows.tracking import Tracking, clear_errors


@dataclass(frozen=True)
class MeasuredVersion:
    name: str
    """`v2`, or `v2, champion` where that is what was asked for."""
    metrics: dict[str, Any]
    """As evaluate wrote them."""
    test_digest: str
    """SHA-256 of the test questions it was measured on."""


def measured_versions(
    tracking: Tracking, settings: Settings, asked: Sequence[str]
) -> list[MeasuredVersion]:
    """Return the versions that are asked for by number or alias.

    Raises PipelineError for one that is not there.
    """
    return [_measured(tracking, settings.record.registered_model, each) for each in asked]


def _measured(tracking: Tracking, name: str, asked: str) -> MeasuredVersion:
    version = _find(tracking, name, asked)
    with TemporaryDirectory() as folder, clear_errors(tracking):
        path = tracking.client.download_artifacts(
            registry.run_of(version), "evaluation/metrics.json", folder
        )
        metrics = read_json(Path(path))
    own = f"v{version.version}"
    return MeasuredVersion(
        name=own if asked.isdecimal() else f"{own}, {asked}",
        metrics=metrics,
        test_digest=version.tags["test_sha256"],
    )


def _find(tracking: Tracking, name: str, asked: str) -> ModelVersion:
    if asked.isdecimal():
        return registry.get_version(tracking, name, int(asked))
    aliases = registry.aliases(tracking, name)
    if asked not in aliases:
        known = ", ".join(sorted(aliases)) or "none yet"
        raise PipelineError(f"{asked!r} is neither a version's number nor an alias; there: {known}")
    return registry.get_version(tracking, name, int(aliases[asked]))
