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
from firstkd.measure.settings import EvaluateSettings
from firstkd.settings import Settings

TEACHER, STUDENTS = "finetune", "distill/"
"""The teacher's folder in `evaluate.models`, and how those of students begin."""


def teacher_name(settings: Settings) -> str | None:
    """Return the name of the teacher in `evaluate.models`, if it is evaluated."""
    return next((n for n, folder in settings.evaluate.models.items() if folder == TEACHER), None)


def learns_from_gold_alone(folder: str, settings: Settings) -> bool:
    """Whether a model is a student that no teacher taught."""
    arm = settings.arms.get(folder.removeprefix(STUDENTS))
    return folder.startswith(STUDENTS) and arm is not None and arm.choices == arm.tokens == 0


@dataclass(frozen=True)
class Evaluated:
    name: str
    folder: str
    """Of the model, under data/."""
    metrics: dict[str, Any]
    rows: pa.Table
    """predictions.parquet: one row per question of each set."""

    @property
    def sets(self) -> dict[str, Any]:
        """Metrics per test set, `test` first."""
        found: dict[str, Any] = self.metrics["sets"]
        return {name: found[name] for name in sorted(found, key=lambda name: name != "test")}

    @property
    def temperature(self) -> float:
        return float(self.metrics["temperature"])

    @property
    def is_student(self) -> bool:
        return self.folder.startswith(STUDENTS)

    @property
    def is_trained(self) -> bool:
        return self.is_student or self.folder == TEACHER

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


def load_evaluated(root: Path, settings: EvaluateSettings) -> dict[str, Evaluated]:
    """Read the models of `evaluate.models`, in that order; other folders there are of old ones.

    Raises ArtifactError when one is missing or was measured on other questions than the rest.
    """
    models = {}
    for name, folder in settings.models.items():
        results = root / "data/evaluate" / name
        metrics = read_json(results / "metrics.json")
        models[name] = Evaluated(
            name, folder, metrics, pq.read_table(results / "predictions.parquet")
        )
    first, *others = models.values()
    for other in others:
        if not other.rows.select(["set", "id"]).equals(first.rows.select(["set", "id"])):
            raise ArtifactError(
                f"data/evaluate/{other.name} is of other questions than data/evaluate/"
                f"{first.name}; run the evaluate stage again"
            )
    return models
