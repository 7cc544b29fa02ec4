"""From a model's answers to what is measured of it, whatever runtime gave them.

`own_temperature` of the calibration split's scores and what is `promised` there, then what is
`measured` of the test sets. Answers in a model's own words are tasks/writing.py's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import pyarrow as pa
import torch
from torch import Tensor

from firstkd.data.examples import Example, right_choices
from firstkd.measure.bootstrap import Draws, Estimate, Statistic, resample
from firstkd.measure.comparison import summary
from firstkd.measure.metrics import Bools, Predictions
from firstkd.measure.risk import interval, promise
from firstkd.measure.settings import EvaluateSettings
from firstkd.recalibration.settings import CalibrateSettings
from firstkd.recalibration.temperature import Temperature
from firstkd.serving.promise import Promise
from firstkd.serving.settings import PolicySettings
from firstkd.signals.knowledge import Knowledge


@dataclass(frozen=True)
class Decided:
    """A split's questions with a model's answers, its confidence in them, and which are right."""

    examples: Sequence[Example]
    readings: Mapping[str, Predictions]
    """`raw`, as the model is; `calibrated`, as it is served; perhaps others."""
    given: Sequence[str]
    """The answers."""
    columns: Mapping[str, Any]
    """Columns of predictions.parquet, those that depend on how it answered."""
    text: Statistic | None = None
    """What measures the answers' words, where they are the model's own."""


@dataclass(frozen=True)
class Scored:
    """A split's questions with the model's scores [E, C] of their choices."""

    examples: list[Example]
    scores: Tensor
    """−inf where a question has fewer choices than another."""
    by_one_token: bool
    """Whether every choice is a single token, so that its score is its probability's logarithm."""

    @classmethod
    def of(cls, examples: Sequence[Example], scores: Tensor, by_one_token: bool) -> Self:
        assert all(example.choices for example in examples)
        return cls(list(examples), scores, by_one_token)

    @property
    def answer_index(self) -> Tensor:
        return torch.tensor([example.answer_index for example in self.examples])

    @property
    def is_right(self) -> Bools:
        return right_choices(self.examples, self.scores.shape[-1])

    def predictions(self, temperature: float = 1.0) -> Predictions:
        return Predictions.of_choices((self.scores.double() / temperature).numpy(), self.is_right)

    def at(self, temperature: float) -> Decided:
        """Return what the model chooses, with confidence over the choices.

        Where each choice is one token, the reading `vocabulary` has it over the whole vocabulary,
        as published evaluations do.
        """
        raw = self.predictions()
        readings = {"raw": raw, "calibrated": self.predictions(temperature)}
        if self.by_one_token:
            answers = Predictions.of_answer_tokens(self.scores.numpy(), self.is_right)
            readings["vocabulary"] = answers
        chosen = zip(self.examples, raw.predicted_index.tolist(), strict=True)
        return Decided(
            examples=self.examples,
            readings=readings,
            given=[(example.choices or ())[index] for example, index in chosen],
            columns={
                "answer_index": self.answer_index.numpy(),
                "is_right": self.is_right.tolist(),
                "predicted_index": raw.predicted_index,
                "scores": self.scores.tolist(),
            },
        )


def own_temperature(split: Scored, settings: CalibrateSettings) -> Temperature:
    """Fit the temperature that goes with a model, on the calibration split's scores."""
    decisions = Knowledge.of_choices(split.scores.log_softmax(-1), split.answer_index)
    return Temperature.fit(decisions, torch.from_numpy(split.is_right), settings)


def measured(
    decided: Mapping[str, Decided], settings: EvaluateSettings, seed: int
) -> tuple[dict[str, Any], pa.Table]:
    """Return the metrics of each test set, and every question's prediction."""
    samples = settings.bootstrap_samples
    sets = {name: _summarise(split, samples, seed) for name, split in decided.items()}
    tables = [_prediction_table(name, split) for name, split in decided.items()]
    return sets, pa.concat_tables(tables)


def promised(split: Decided, policy: PolicySettings | None) -> Promise | None:
    """Return what can be promised of a model as it is served, on the calibration split."""
    if policy is None:
        return None
    decisions = split.readings["calibrated"]
    return promise(decisions.confidence, decisions.correct, policy)


def under(kept: Promise, split: Decided) -> dict[str, Any]:
    """Return the share of a test set that is answered, and the share of that which is wrong."""
    decisions = split.readings["calibrated"]
    answered = decisions.confidence >= kept.abstain_below
    wrong = answered & ~decisions.correct
    return plain(
        {
            "coverage": interval(int(answered.sum()), len(decisions)),
            "error": interval(int(wrong.sum()), int(answered.sum())),
        }
    )


def plain(estimates: Mapping[str, Estimate]) -> dict[str, dict[str, float]]:
    """Return what is written of metrics with their intervals."""
    return {name: asdict(estimate) for name, estimate in estimates.items()}


def drawn_with(example: Example) -> str:
    """Return what a bootstrap draws an example with: its conversation or passage, if it has one.

    Another test set would have other conversations, not other turns of the same ones.
    """
    return example.group or example.id


def _summarise(split: Decided, samples: int, seed: int) -> dict[str, Any]:
    """Return the metrics of each reading of the confidence, and of the words (`text`)."""
    groups = [drawn_with(example) for example in split.examples]
    found: dict[str, Any] = {"examples": len(split.examples)}
    for reading, predictions in split.readings.items():
        found[reading] = plain(summary(predictions, samples, seed, groups))
    if split.text is not None:
        draws = Draws.of(len(split.examples), samples, seed, groups)
        resampled = resample(split.text, draws)
        found["text"] = plain({name: each.estimate(0, 1) for name, each in resampled.items()})
    return found


def _prediction_table(name: str, split: Decided) -> pa.Table:
    raw, calibrated = split.readings["raw"], split.readings["calibrated"]
    return pa.table(
        {
            "set": [name] * len(split.examples),
            "id": [example.id for example in split.examples],
            "group": [drawn_with(example) for example in split.examples],
            "answer": [example.response for example in split.examples],
            "given": split.given,
            "confidence": raw.confidence,
            "calibrated_confidence": calibrated.confidence,
            "correct": raw.correct,
            **split.columns,
        },
        schema=PREDICTIONS,
    )


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
"""Answers in a model's own words have no scores, and the indices are −1."""
