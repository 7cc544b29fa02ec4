"""What evaluate measured for each model, as the report reads it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from firstkd.errors import ArtifactError
from firstkd.files import read_json
from firstkd.measure.bootstrap import Statistic
from firstkd.measure.metrics import Predictions
from firstkd.open_text.metrics import statistic
from firstkd.serving.promise import Promise
from firstkd.settings import Settings
from tasks import predictions


def teacher_name(settings: Settings) -> str | None:
    """Return the first teacher of the registered student that is evaluated, if any is."""
    return next((name for name in settings.teachers if name in settings.evaluate.models), None)


@dataclass(frozen=True)
class Evaluated:
    name: str
    is_student: bool
    """Whether it could be registered; the registered student's teachers could not."""
    metrics: dict[str, Any]
    predictions: Path
    """predictions.parquet: one row per question of each set."""
    promise: Promise | None = None
    """What it promises under serve.policy, if anything."""

    @property
    def sets(self) -> dict[str, Any]:
        """Metrics per test set, `test` first."""
        found: dict[str, Any] = self.metrics["sets"]
        return {name: found[name] for name in sorted(found, key=lambda name: name != "test")}

    @property
    def temperature(self) -> float | None:
        """Its own temperature, for choices; None if there was nothing to choose from."""
        found: float | None = self.metrics["temperature"]
        return found

    @property
    def served(self) -> str:
        """How its confidence on the test set was calibrated, in words."""
        if "text" in self.sets["test"]:
            return "as calibrated"
        return f"at its own temperature of {self.temperature:.2f}"

    def of_set(self, name: str, columns: Sequence[str]) -> pa.Table:
        """Return some columns of a test set's rows; nothing else is read from the file."""
        wanted = pc.field("set") == name
        return pq.read_table(self.predictions, columns=[*columns], filters=wanted)

    def column(self, test_set: str, name: str) -> NDArray[Any]:
        """Return a column of a test set [E], or [E, C] if it contains lists."""
        return predictions.array_of(self.of_set(test_set, [name])[name])

    def groups(self, test_set: str) -> NDArray[np.int64]:
        """The number of the group that a bootstrap draws each question with: a conversation."""
        return predictions.numbered(self.of_set(test_set, ["group"])["group"])

    def raw(self, test_set: str) -> Predictions:
        """Predictions of the raw model."""
        return predictions.raw(self._columns(test_set))

    def calibrated(self, test_set: str) -> Predictions:
        """Predictions of the model as it is served."""
        return predictions.served(self._columns(test_set), self.temperature)

    def text(self, test_set: str) -> Statistic | None:
        """Return the statistic of its words, if it answered in its own."""
        if "text" not in self.sets[test_set]:
            return None
        rows = self.of_set(test_set, ["given", "answer"])
        return statistic(rows["given"].to_pylist(), rows["answer"].to_pylist())

    def _columns(self, test_set: str) -> dict[str, NDArray[Any]]:
        rows = self.of_set(test_set, predictions.READ)
        return {name: predictions.array_of(rows[name]) for name in predictions.READ}


def load_evaluated(root: Path, settings: Settings) -> dict[str, Evaluated]:
    """Read the models of `evaluate.models`, in that order; other folders are left from old ones.

    Raises ArtifactError when one is missing or was measured on other questions than the rest.
    """
    models = {}
    for name in settings.evaluate.models:
        results = root / "data/evaluate" / name
        metrics = read_json(results / "metrics.json")
        kept = read_json(results / "calibration.json")
        policy = (kept["open_text"] if "text" in metrics["sets"]["test"] else kept)["policy"]
        models[name] = Evaluated(
            name,
            name not in settings.teachers,
            metrics,
            results / "predictions.parquet",
            Promise(**policy) if policy else None,
        )
    first, *others = models.values()
    asked = _asked(first) if others else None
    for other in others:
        if not _asked(other).equals(asked):
            raise ArtifactError(
                f"data/evaluate/{other.name} covers other questions than data/evaluate/"
                f"{first.name}; run the evaluate stages again"
            )
    return models


def _asked(model: Evaluated) -> pa.Table:
    return pq.read_table(model.predictions, columns=["set", "id"])
