"""Turn the rows of predictions.parquet back into decisions, for the report and the gate."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from firstkd.measure.metrics import Predictions

READ = ("is_right", "scores", "confidence", "calibrated_confidence", "correct")
"""Columns that are read; for choices, the first two are enough."""
Columns = Mapping[str, NDArray[Any]]
"""Columns of one test set [E], or [E, C] for lists, by the names in READ."""


def raw(columns: Columns) -> Predictions:
    """Return the raw model's predictions on a test set."""
    return _predictions(columns, 1.0, "confidence")


def served(columns: Columns, temperature: float | None) -> Predictions:
    """Return the served model's predictions: choices at its temperature, own words calibrated."""
    return _predictions(columns, temperature, "calibrated_confidence")


def _predictions(columns: Columns, temperature: float | None, confidence: str) -> Predictions:
    scores = columns["scores"]  # −inf where a question has no such choice
    if not scores.shape[-1]:  # it answered in its own words
        return Predictions.of_answers(columns[confidence], columns["correct"])
    assert temperature is not None
    return Predictions.of_choices(scores / temperature, columns["is_right"])


def array_of(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return a column's values [E], or its lists [E, C], which must be equally long."""
    whole = column.combine_chunks()
    if not pa.types.is_list(whole.type):
        return np.asarray(whole.to_numpy(zero_copy_only=False))
    flat = whole.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat.reshape(len(whole), len(flat) // max(1, len(whole))))


def numbered(names: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return the rank of each name among the distinct names, from 0."""
    ranks = pc.rank(names, tiebreaker="dense")
    return np.asarray(ranks.to_numpy(zero_copy_only=False), np.int64) - 1
