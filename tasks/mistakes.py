"""The questions that a model got wrong although it was sure: where to look first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from firstkd.data.examples import Example, example_chunks
from tasks.evaluated import Evaluated

SHOWN = 25
"""Mistakes shown per model and test set."""
COLUMNS = ("set", "id", "answer", "given", "calibrated_confidence", "correct")
SUREST = [("calibrated_confidence", "descending"), ("id", "ascending")]


@dataclass(frozen=True)
class Mistake:
    model: str
    test_set: str
    question: str
    choices: list[str]
    right: str
    given: str
    confidence: float
    """The confidence as it is served."""


def confident_mistakes(models: Sequence[Evaluated], prepared: Sequence[Path]) -> list[Mistake]:
    """Return the surest wrong answers of each model on each set, each model's surest first.

    `prepared` are the files with the questions.
    """
    wrong = [[row for name in model.sets for row in _wrong(model, name)] for model in models]
    shown = {row["id"] for rows in wrong for row in rows}
    parts = (part for file in prepared for part in example_chunks(file))
    examples = {each.id: each for part in parts for each in part if each.id in shown}
    found = []
    for model, rows in zip(models, wrong, strict=True):
        of_model = [_mistake(model, row, examples[row["id"]]) for row in rows]
        found += sorted(of_model, key=lambda mistake: -mistake.confidence)
    return found


def _wrong(model: Evaluated, test_set: str) -> list[dict[str, Any]]:
    rows = model.of_set(test_set, COLUMNS)
    surest: pa.Table = rows.filter(pc.invert(rows["correct"])).sort_by(SUREST)[:SHOWN]
    found: list[dict[str, Any]] = surest.to_pylist()
    return found


def _mistake(model: Evaluated, row: Mapping[str, Any], example: Example) -> Mistake:
    return Mistake(
        model=model.name,
        test_set=row["set"],
        question=example.prompt,
        choices=[*(example.choices or ())],
        right=row["answer"],
        given=row["given"],
        confidence=row["calibrated_confidence"],
    )
