"""How sure a model is of an answer that it wrote: an uncalibrated number from 0 to 1.

firstkd/open_text/calibration.py turns it into the probability that the answer is right.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from firstkd.data.examples import Example
from firstkd.measure.ranking import Floats
from firstkd.open_text.metrics import METRICS
from firstkd.section import Positive, Section

if TYPE_CHECKING:
    from firstkd.open_text.writer import Writer

CLAIMED = "Proposed answer: {}\nIs the proposed answer right?"
VERDICTS = ("Yes", "No")


@dataclass(frozen=True)
class Written:
    """An answer in a model's own words."""

    text: str
    probabilities: Floats
    """The model's probability of each token, including the one that ends it, if any."""


class Confidence(Section, ABC):
    @abstractmethod
    def of(
        self, writer: "Writer", examples: Sequence[Example], answers: Sequence[Written]
    ) -> Floats:
        """Return the confidence [E] in the answers to questions [E]."""


class MeanProbability(Confidence):
    """Geometric mean of the tokens' probabilities (Malinin and Gales 2021, sec. 3.1).

    The logarithms are averaged, as for choices, so long answers are not less sure.
    """

    kind: Literal["mean_probability"]

    def of(
        self, writer: "Writer", examples: Sequence[Example], answers: Sequence[Written]
    ) -> Floats:
        tiny = np.finfo(np.float64).tiny
        logs = [np.log(np.maximum(each.probabilities, tiny)).mean() for each in answers]
        return np.asarray(np.exp(logs))


class MinProbability(Confidence):
    """Probability of the least probable token: a made-up name stands out."""

    kind: Literal["min_probability"]

    def of(
        self, writer: "Writer", examples: Sequence[Example], answers: Sequence[Written]
    ) -> Floats:
        return np.array([each.probabilities.min() for each in answers])


class Agreement(Confidence):
    """Share of further draws that agree with the answer, by the metric that judges it.

    Self-consistency: Wang et al. 2023; as a confidence: Lin, Trivedi and Sun 2024. One success and
    one failure are added (Laplace), so that it is never 0 or 1.
    """

    kind: Literal["agreement"]
    samples: Positive
    temperature: Annotated[float, Field(gt=0)]
    """Temperature of these draws."""

    def of(
        self, writer: "Writer", examples: Sequence[Example], answers: Sequence[Written]
    ) -> Floats:
        drawn = writer.texts(examples, self.temperature, range(1, self.samples + 1))
        settings = writer.settings
        same = METRICS[settings.metric]
        agreed = [
            sum(same(draw, answer.text) >= settings.right_from for draw in draws)
            for draws, answer in zip(drawn, answers, strict=True)
        ]
        return (np.array(agreed) + 1) / (self.samples + 2)


class PTrue(Confidence):
    """Probability of "Yes" when the model is shown its answer and asked if it is right.

    P(True) of Kadavath et al. 2022, sec. 3. "Yes" and "No" are scored as two choices.
    """

    kind: Literal["p_true"]

    def of(
        self, writer: "Writer", examples: Sequence[Example], answers: Sequence[Written]
    ) -> Floats:
        checks = [
            Example(
                id=example.id,
                prompt=f"{example.prompt}\n{CLAIMED.format(answer.text)}",
                response="",
                choices=VERDICTS,
                answer_index=None,
                source=example.source,
                history=example.history,
            )
            for example, answer in zip(examples, answers, strict=True)
        ]
        return writer.choose(checks)[:, 0]


AnyConfidence = Annotated[
    MeanProbability | MinProbability | Agreement | PTrue, Field(discriminator="kind")
]
