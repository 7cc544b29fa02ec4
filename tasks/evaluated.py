"""What evaluate found out about each model, as the report reads it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from firstkd.errors import ArtifactError
from firstkd.files import read_json
from firstkd.measure.metrics import Predictions
from firstkd.serving.promise import Promise
from firstkd.settings import Settings


def teacher_name(settings: Settings) -> str | None:
    """Return the first teacher of the registered student that is evaluated, if any is."""
    return next((name for name in settings.teachers if name in settings.evaluate.models), None)


@dataclass(frozen=True)
class Evaluated:
    name: str
    is_student: bool
    """Whether it could be registered: the registered student's teachers could not."""
    metrics: dict[str, Any]
    rows: pa.Table
    """predictions.parquet: one row per question of each set."""
    promise: Promise | None = None
    """What serve.policy promises of it."""

    @property
    def sets(self) -> dict[str, Any]:
        """Metrics per test set, `test` first."""
        found: dict[str, Any] = self.metrics["sets"]
        return {name: found[name] for name in sorted(found, key=lambda name: name != "test")}

    @property
    def temperature(self) -> float:
        return float(self.metrics["temperature"])

    def of_set(self, name: str) -> pa.Table:
        return self.rows.filter(pc.equal(self.rows["set"], name))

    def raw(self, test_set: str) -> Predictions:
        """As the model is."""
        return self._predictions(test_set, 1.0)

    def calibrated(self, test_set: str) -> Predictions:
        """With the model's own temperature, as it is served."""
        return self._predictions(test_set, self.temperature)

    def _predictions(self, test_set: str, temperature: float) -> Predictions:
        rows = self.of_set(test_set)
        # where a question has fewer choices than another, the scores are −inf
        scores, is_right = (np.array(rows[name].to_pylist()) for name in ("scores", "is_right"))
        return Predictions.of_choices(scores.astype(np.float64) / temperature, is_right)


def load_evaluated(root: Path, settings: Settings) -> dict[str, Evaluated]:
    """Read the models of `evaluate.models`, in that order; other folders there are of old ones.

    Raises ArtifactError when one is missing or was measured on other questions than the rest.
    """
    models = {}
    for name in settings.evaluate.models:
        results = root / "data/evaluate" / name
        metrics = read_json(results / "metrics.json")
        policy = read_json(results / "calibration.json")["policy"]
        models[name] = Evaluated(
            name,
            name not in settings.teachers,
            metrics,
            pq.read_table(results / "predictions.parquet"),
            Promise(**policy) if policy else None,
        )
    first, *others = models.values()
    for other in others:
        if not other.rows.select(["set", "id"]).equals(first.rows.select(["set", "id"])):
            raise ArtifactError(
                f"data/evaluate/{other.name} is of other questions than data/evaluate/"
                f"{first.name}; run the evaluate stage again"
            )
    return models
