"""The questions that a model got wrong although it was sure: where to look first."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from firstkd.data.examples import Example
from tasks.evaluated import Evaluated

SHOWN = 25
"""Mistakes shown of each model and test set."""


@dataclass(frozen=True)
class Mistake:
    model: str
    test_set: str
    question: str
    choices: list[str]
    right: str
    given: str
    confidence: float
    """As it is served."""


def confident_mistakes(model: Evaluated, examples: Mapping[str, Example]) -> list[Mistake]:
    """Return a model's surest wrong answers of each set, the surest of all first.

    `examples` are the prepared ones, by id.
    """
    found = []
    for test_set in model.sets:
        wrong = [row for row in model.of_set(test_set).to_pylist() if not row["correct"]]
        wrong.sort(key=lambda row: (-row["calibrated_confidence"], row["id"]))
        found += [_mistake(model, row, examples[row["id"]]) for row in wrong[:SHOWN]]
    return sorted(found, key=lambda mistake: -mistake.confidence)


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
