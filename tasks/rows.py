"""Write predictions.parquet, one row group at a time.

Texts are read again from the prepared file during writing, so memory never holds them all.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from firstkd.data.examples import write_tables
from tasks.scores import Decided, drawn_with

PREDICTIONS = pa.schema(
    [
        ("set", pa.string()),
        ("id", pa.string()),
        ("group", pa.string()),
        ("answer", pa.string()),
        ("answer_index", pa.int64()),
        ("is_right", pa.list_(pa.bool_())),
        ("given", pa.string()),
        ("predicted_index", pa.int64()),
        ("confidence", pa.float64()),
        ("calibrated_confidence", pa.float64()),
        ("correct", pa.bool_()),
        ("scores", pa.list_(pa.float64())),
    ]
)
"""Answers in a model's own words have no scores, and their indices are −1."""


def write_predictions(path: Path, decided: Mapping[str, Decided]) -> None:
    """Write one row for each question of each test set."""
    tables = (table for name, split in decided.items() for table in _tables(name, split))
    write_tables(path, tables, PREDICTIONS, "snappy")


def _tables(name: str, split: Decided) -> Iterator[pa.Table]:
    raw, calibrated = split.readings["raw"], split.readings["calibrated"]
    columns = {
        "confidence": raw.confidence,
        "calibrated_confidence": calibrated.confidence,
        "correct": raw.correct,
        **split.columns,
    }
    start = 0
    for examples in split.asked:
        part = slice(start, start + len(examples))
        yield pa.table(
            {
                "set": [name] * len(examples),
                "id": [example.id for example in examples],
                "group": [drawn_with(example) for example in examples],
                "answer": [example.response for example in examples],
                "given": split.answers(examples, part),
                **{name: _column(values[part]) for name, values in columns.items()},
            },
            schema=PREDICTIONS,
        )
        start += len(examples)


def _column(values: NDArray[Any]) -> pa.Array:
    """Return values [E], or lists [E, C], as a column."""
    flat = pa.array(values.ravel())
    if values.ndim == 1:
        return flat
    return pa.ListArray.from_arrays(np.arange(len(values) + 1) * values.shape[1], flat)
