"""From a model's scores of the choices to what is measured of it, whatever runtime scored them.

`own_temperature` of the calibration split's scores and what is `promised` there, then what is
`measured` of the test sets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import pyarrow as pa
import torch
from torch import Tensor

from firstkd.data.examples import Example, right_choices
from firstkd.measure.bootstrap import Estimate
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


def own_temperature(split: Scored, settings: CalibrateSettings) -> Temperature:
    """Fit the temperature that goes with a model, on the calibration split's scores."""
    decisions = Knowledge.of_choices(split.scores.log_softmax(-1), split.answer_index)
    return Temperature.fit(decisions, torch.from_numpy(split.is_right), settings)


def measured(
    scored: Mapping[str, Scored], temperature: float, settings: EvaluateSettings, seed: int
) -> tuple[dict[str, Any], pa.Table]:
    """Return the metrics of each test set, and every question's prediction."""
    sets = {name: _summarise(split, temperature, settings, seed) for name, split in scored.items()}
    tables = [_prediction_table(name, split, temperature) for name, split in scored.items()]
    return sets, pa.concat_tables(tables)


def promised(split: Scored, temperature: float, policy: PolicySettings | None) -> Promise | None:
    """Return what can be promised of a model at its own temperature, on the calibration split."""
    if policy is None:
        return None
    decisions = split.predictions(temperature)
    return promise(decisions.confidence, decisions.correct, policy)


def under(kept: Promise, split: Scored, temperature: float) -> dict[str, Any]:
    """Return the share of a test set that is answered, and the share of that which is wrong."""
    decisions = split.predictions(temperature)
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


def _summarise(
    split: Scored, temperature: float, settings: EvaluateSettings, seed: int
) -> dict[str, Any]:
    """Return the metrics of the model as it is (`raw`) and at its own temperature.

    Both read confidence over the choices; where each choice is one token, `vocabulary` reads it
    over the whole vocabulary, as published evaluations do.
    """
    samples = settings.bootstrap_samples
    found: dict[str, Any] = {
        "examples": len(split.examples),
        "raw": plain(summary(split.predictions(), samples, seed)),
        "calibrated": plain(summary(split.predictions(temperature), samples, seed)),
    }
    if split.by_one_token:
        answers = Predictions.of_answer_tokens(split.scores.numpy(), split.is_right)
        found["vocabulary"] = plain(summary(answers, samples, seed))
    return found


def _prediction_table(name: str, split: Scored, temperature: float) -> pa.Table:
    raw = split.predictions()
    return pa.table(
        {
            "set": [name] * len(split.examples),
            "id": [example.id for example in split.examples],
            "answer": [example.response for example in split.examples],
            "answer_index": split.answer_index.numpy(),
            "is_right": split.is_right.tolist(),
            "predicted_index": raw.predicted_index,
            "confidence": raw.confidence,
            "calibrated_confidence": split.predictions(temperature).confidence,
            "correct": raw.correct,
            "scores": split.scores.tolist(),
        }
    )
