"""What was measured of a registered version: all that the gate knows about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from firstkd.files import read_json
from firstkd.measure.metrics import Predictions
from tasks.predictions import READ, served

COLUMNS = ("set", "id", "answer", "answer_index", "is_right", "scores")
"""Columns of predictions.parquet that the gate reads."""


@dataclass(frozen=True)
class Evidence:
    """What was measured of one registered version."""

    version: str
    test_digest: str
    sets: dict[str, Any]
    """Metrics per test set, as evaluate wrote them; `calibrated` is the student as it is served."""
    temperature: float | None
    """Its own temperature, for served choices; None if it answers open text alone."""
    predictions: pd.DataFrame
    """One row per question of every test set."""
    teacher_accuracy: float | None = None
    """On the same test questions; None if no teacher was measured."""
    not_reproducible: str | None = None
    """Why its commit does not rebuild it; None if it does."""
    exports: Mapping[str, "Evidence"] = field(default_factory=dict)
    """The same for its exports, measured in their runtimes, by name."""
    measured_anew: bool = False
    """Whether it was measured again for the comparison, since it was tested on other questions."""

    @classmethod
    def read(
        cls, folder: Path, version: str, test_digest: str, not_reproducible: str | None = None
    ) -> "Evidence":
        """Read what a run keeps of a version in `evaluation/` (tasks/kept.py)."""
        measured, teacher = read_json(folder / "metrics.json"), folder / "teacher.json"
        return cls(
            version=version,
            test_digest=test_digest,
            sets=measured["sets"],
            temperature=measured["temperature"],
            predictions=pd.read_parquet(folder / "predictions.parquet"),
            teacher_accuracy=read_json(teacher)["accuracy"] if teacher.exists() else None,
            not_reproducible=not_reproducible,
            exports={
                file.parent.name: cls.read(file.parent, version, test_digest)
                for file in sorted(folder.glob("exports/*/metrics.json"))
            },
        )

    def metric(self, name: str, bound: str = "value") -> float:
        return float(self.sets["test"]["calibrated"][name][bound])

    @property
    def is_complete(self) -> bool:
        """Whether all that is compared is there; versions of earlier releases lack some of it."""
        present = set(COLUMNS) <= set(self.predictions.columns)
        return present and not self.predictions[[*COLUMNS]].isna().to_numpy().any()

    def measured_again(self, folder: Path, test_digest: str) -> "Evidence":
        """Return this with its sets replaced by those that tasks/remeasure.py wrote to `folder`."""
        found = read_json(folder / "metrics.json")
        predictions = pd.read_parquet(folder / "predictions.parquet")
        gone = self.predictions[~self.predictions["set"].isin(found["sets"])]
        return replace(
            self,
            test_digest=test_digest,
            sets={**self.sets, **found["sets"]},
            temperature=found["temperature"],
            predictions=pd.concat([predictions, gone], ignore_index=True),
            measured_anew=True,
        )

    def of_set(self, name: str) -> pd.DataFrame:
        rows = self.predictions[self.predictions["set"] == name]
        return rows.sort_values("id", ignore_index=True)

    def groups(self, name: str) -> list[str] | None:
        """The groups that a bootstrap draws; None for a version that did not record them."""
        rows = self.of_set(name)
        if "group" not in rows or rows["group"].isna().any():
            return None
        return list(rows["group"])

    def served(self, name: str) -> Predictions:
        """Return the predictions on a test set as the version is served, sorted by id."""
        rows = self.of_set(name)
        found = {name: np.array(rows[name].tolist()) for name in READ if name in rows}
        return served(found, self.temperature)
