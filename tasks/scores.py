"""From a model's answers to its metrics, whatever runtime gave the answers.

`own_temperature` and `promised` use the calibration split, `measured` the test sets. For answers in
a model's own words, see tasks/writing.py.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from firstkd.data.examples import CHUNK, Example, right_choices
from firstkd.measure.bootstrap import Counts, Draws, Estimate, Floats, Statistic, resample
from firstkd.measure.comparison import summary
from firstkd.measure.metrics import Bools, Predictions
from firstkd.measure.risk import interval, promise
from firstkd.measure.settings import EvaluateSettings
from firstkd.recalibration.settings import CalibrateSettings
from firstkd.recalibration.temperature import Temperature
from firstkd.serving.promise import Promise
from firstkd.serving.settings import PolicySettings
from firstkd.signals.knowledge import Knowledge
from tasks.predictions import numbered

Chunks = Iterable[Sequence[Example]]
"""Questions in chunks; can be iterated more than once."""


@dataclass(frozen=True)
class Decided:
    """A split's questions with a model's answers, its confidence in them, and which are right.

    The questions themselves stay in their file; memory holds only numbers for each.
    """

    asked: Chunks
    readings: Mapping[str, Predictions]
    """`raw`, the model as it is; `calibrated`, as it is served; perhaps others."""
    columns: Mapping[str, NDArray[Any]]
    """The columns of predictions.parquet, [E] or [E, C], that depend on how it answered."""
    given: Sequence[str] | None = None
    """Answers in its own words; None if it chose."""
    text: Statistic | None = None
    """The statistic of the answers' words, if they are the model's own."""

    def answers(self, examples: Sequence[Example], part: slice) -> Sequence[str]:
        """Return the answers to `examples`, which are this part of all questions."""
        if self.given is not None:
            return self.given[part]
        chosen = zip(examples, self.columns["predicted_index"][part].tolist(), strict=True)
        return [(example.choices or ())[index] for example, index in chosen]


@dataclass(frozen=True)
class Scored:
    """A model's scores [E, C] for the choices of a split's questions, and which are right."""

    scores: Tensor
    """−inf where a question has fewer choices than another."""
    is_right: Bools
    """[E, C]; several may be right, if their texts are the same."""
    answer_index: Tensor
    """[E]"""
    by_one_token: bool
    """Whether every choice is a single token, so that its score is its log-probability."""

    @classmethod
    def of(cls, examples: Sequence[Example], scores: Tensor, by_one_token: bool) -> Self:
        assert all(example.choices for example in examples)
        is_right = right_choices(examples, scores.shape[-1])
        answers = torch.tensor([example.answer_index for example in examples])
        return cls(scores, is_right, answers, by_one_token)

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        width = max(part.scores.shape[1] for part in parts)
        more = [width - part.scores.shape[1] for part in parts]
        wide = zip(parts, more, strict=True)
        return cls(
            torch.cat([pad(part.scores, (0, by), value=-torch.inf) for part, by in wide]),
            np.concatenate(
                [np.pad(p.is_right, ((0, 0), (0, by))) for p, by in zip(parts, more, strict=True)]
            ),
            torch.cat([part.answer_index for part in parts]),
            all(part.by_one_token for part in parts),
        )

    def predictions(self, temperature: float = 1.0) -> Predictions:
        return Predictions.concatenate(
            Predictions.of_choices((scores.double() / temperature).numpy(), is_right)
            for scores, is_right in self._parts()
        )

    def _parts(self) -> Iterator[tuple[Tensor, Bools]]:
        """Yield the scores in chunks: all of them in float64 would take the most memory."""
        for start in range(0, len(self.scores), CHUNK):
            part = slice(start, start + CHUNK)
            yield self.scores[part], self.is_right[part]

    def at(self, temperature: float, asked: Chunks) -> Decided:
        """Return what the model chooses, with its confidence over the choices.

        If each choice is one token, the reading `vocabulary` has the confidence over the whole
        vocabulary, as in published evaluations.
        """
        raw = self.predictions()
        readings = {"raw": raw, "calibrated": self.predictions(temperature)}
        if self.by_one_token:
            readings["vocabulary"] = Predictions.concatenate(
                Predictions.of_answer_tokens(scores.numpy(), is_right)
                for scores, is_right in self._parts()
            )
        return Decided(
            asked=asked,
            readings=readings,
            columns={
                "answer_index": self.answer_index.numpy(),
                "is_right": self.is_right,
                "predicted_index": raw.predicted_index,
                "scores": self.scores.numpy(),
            },
        )


def own_temperature(split: Scored, settings: CalibrateSettings) -> Temperature:
    """Fit a model's own temperature on the calibration split's scores."""
    decisions = Knowledge.of_choices(split.scores.log_softmax(-1), split.answer_index)
    return Temperature.fit(decisions, torch.from_numpy(split.is_right), settings)


def measured(
    decided: Mapping[str, Decided], settings: EvaluateSettings, seed: int
) -> dict[str, Any]:
    """Return the metrics of each test set."""
    samples = settings.bootstrap_samples
    return {name: _summarise(split, samples, seed) for name, split in decided.items()}


def promised(split: Decided, policy: PolicySettings | None) -> Promise | None:
    """Return what can be promised of a model as it is served, from the calibration split."""
    if policy is None:
        return None
    decisions = split.readings["calibrated"]
    return promise(decisions.confidence, decisions.correct, policy)


def under(kept: Promise, split: Decided, samples: int, seed: int) -> dict[str, Any]:
    """Return the share of a test set that is answered, and the share of answers that are wrong.

    Their intervals are exact, or bootstrapped over passages and conversations if there are any.
    """
    decisions = split.readings["calibrated"]
    answered = decisions.confidence >= kept.abstain_below
    wrong, groups = answered & ~decisions.correct, group_numbers(split.asked)
    if answered.any() and len(np.unique(groups)) < len(groups):

        def shares(counts: Counts) -> dict[str, Floats]:
            of_answers = np.maximum((counts * answered).sum(-1), 1)
            return {
                "coverage": (counts * answered).sum(-1) / counts.sum(-1),
                "error": (counts * wrong).sum(-1) / of_answers,
            }

        found = resample(shares, Draws.of(len(groups), samples, seed, groups))
        return plain({name: each.estimate(0, 1) for name, each in found.items()})
    return plain(
        {
            "coverage": interval(int(answered.sum()), len(decisions)),
            "error": interval(int(wrong.sum()), int(answered.sum())),
        }
    )


def plain(estimates: Mapping[str, Estimate]) -> dict[str, dict[str, float]]:
    """Return metrics with their intervals as plain dictionaries."""
    return {name: asdict(estimate) for name, estimate in estimates.items()}


def drawn_with(example: Example) -> str:
    """Return the unit that a bootstrap draws: an example's conversation or passage, or itself.

    Another test set would have other conversations, not other turns of the same ones.
    """
    return example.group or example.id


def group_numbers(asked: Chunks) -> NDArray[np.int64]:
    """Return the number [E] of the unit that each example is drawn with."""
    return numbered(
        pa.chunked_array(([*map(drawn_with, examples)] for examples in asked), pa.string())
    )


def _summarise(split: Decided, samples: int, seed: int) -> dict[str, Any]:
    """Return the metrics of each reading of the confidence, and of own words (`text`) if any."""
    groups = group_numbers(split.asked)
    found: dict[str, Any] = {"examples": len(groups)}
    for reading, predictions in split.readings.items():
        found[reading] = plain(summary(predictions, samples, seed, groups))
    if split.text is not None:
        draws = Draws.of(len(groups), samples, seed, groups)
        resampled = resample(split.text, draws)
        found["text"] = plain({name: each.estimate(0, 1) for name, each in resampled.items()})
    return found
