"""What is measured of a test set of conversations."""

from dataclasses import replace

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from firstkd.data.examples import Example
from firstkd.measure.metrics import Predictions
from firstkd.open_text.metrics import statistic
from firstkd.serving.promise import Promise
from firstkd.settings import load_settings
from tasks.rows import write_predictions
from tasks.scores import Decided, measured, under
from tests.tiny import REPOSITORY

CONVERSATIONS, TURNS = 40, 4
RIGHT = np.random.default_rng(0).random(CONVERSATIONS) < 0.6


def answered(turns: int, is_grouped: bool) -> Decided:
    """Conversations whose turns are all answered alike."""
    right = RIGHT.repeat(turns)
    questions = range(len(right))
    examples = [Example(f"e{i}", "Where?", "in a den", None, None, "made") for i in questions]
    if is_grouped:
        examples = [replace(e, group=f"c{i // turns}") for i, e in enumerate(examples)]
    given = ["in a den" if each else "at sea" for each in right]
    predictions = Predictions.of_answers(np.full(len(right), 0.6), right)
    return Decided(
        asked=[examples[:7], examples[7:]],
        readings={"raw": predictions, "calibrated": predictions},
        given=given,
        columns={
            "answer_index": np.full(len(right), -1),
            "is_right": right[:, None],
            "predicted_index": np.full(len(right), -1),
            "scores": np.empty((len(right), 0)),
        },
        text=statistic(given, ["in a den"] * len(right)),
    )


def test_what_is_answered_under_a_promise_has_intervals_over_conversations() -> None:
    kept = Promise(0.1, 0.9, 0.5, questions=100, answered=60, wrong=2, error_bound=0.1)
    alone, test, turns = (
        under(kept, answered(*each), samples=1000, seed=0)["error"]
        for each in ((1, False), (TURNS, True), (TURNS, False))
    )
    assert alone["value"] == test["value"] == turns["value"] == pytest.approx(1 - RIGHT.mean())
    width = {id(each): each["high"] - each["low"] for each in (alone, test, turns)}
    assert width[id(test)] == pytest.approx(width[id(alone)], rel=0.2)
    assert width[id(turns)] < 0.7 * width[id(test)]


def test_intervals_are_over_conversations_and_not_their_turns(tmp_path) -> None:
    decided = {
        "alone": answered(1, False),
        "test": answered(TURNS, True),
        "turns": answered(TURNS, False),
    }
    settings = load_settings(REPOSITORY / "params.yaml").evaluate
    settings = settings.model_copy(update={"bootstrap_samples": 1000})
    sets = measured(decided, settings, seed=0)
    for reading, metric in (("raw", "accuracy"), ("text", "exact_match")):
        found = {name: of_set[reading][metric] for name, of_set in sets.items()}
        width = {name: one["high"] - one["low"] for name, one in found.items()}
        assert width["test"] == pytest.approx(width["alone"], rel=0.2)
        assert width["turns"] < 0.7 * width["test"]
    write_predictions(tmp_path / "predictions.parquet", decided)
    rows = pq.read_table(tmp_path / "predictions.parquet", filters=pc.field("set") == "test")
    groups = rows["group"].to_pylist()
    assert groups == [f"c{i // TURNS}" for i in range(CONVERSATIONS * TURNS)]
