"""The rows of predictions.parquet as decisions again, for the report and the gate."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from firstkd.measure.metrics import Predictions

READ = ("is_right", "scores", "confidence", "calibrated_confidence", "correct")
"""Columns that are read; of choices the first two are enough."""
Columns = Mapping[str, list[Any]]
"""Columns of one test set, by the names in READ."""


def raw(columns: Columns) -> Predictions:
    """Return a test set's predictions of the model as it is."""
    return _predictions(columns, 1.0, "confidence")


def served(columns: Columns, temperature: float | None) -> Predictions:
    """Return them as it is served: choices at its temperature, own words as calibrated."""
    return _predictions(columns, temperature, "calibrated_confidence")


def _predictions(columns: Columns, temperature: float | None, confidence: str) -> Predictions:
    scores = np.array(columns["scores"], np.float64)  # −inf where there is no such choice
    if not scores.shape[-1]:  # it answered in its own words
        return Predictions.of_answers(np.array(columns[confidence]), np.array(columns["correct"]))
    assert temperature is not None
    return Predictions.of_choices(scores / temperature, np.array(columns["is_right"]))
