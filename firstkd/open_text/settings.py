"""Settings of answers in a model's own words."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from firstkd.data.settings import PromptSettings
from firstkd.open_text.confidence import AnyConfidence
from firstkd.open_text.metrics import MetricName
from firstkd.section import Positive, Section, Weight

if TYPE_CHECKING:
    from firstkd.signals.base import Signal
    from firstkd.terms.base import Term

CalibrationName = Literal["temperature", "platt", "isotonic"]


class OpenTextSettings(Section):
    max_new_tokens: Positive
    """Maximum length of an answer, which is cut off there."""
    temperature: Weight
    """For the answer: 0 takes the most probable token at each position; above 0, tokens are drawn
    at this temperature, the same ones for the same question and seed."""
    metric: MetricName
    """Compares an answer with the right one."""
    right_from: Annotated[float, Field(gt=0, le=1)]
    """An answer counts as right if the metric is at least this."""
    confidence: AnyConfidence
    recalibrate: CalibrationName
    """How confidence becomes a probability of being right, fitted on the calibration split."""


class OnPolicy(Section):
    """Text that a student writes itself and then learns from (firstkd/open_text/on_policy.py)."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """λ: share of the micro-batches in which it writes the responses to open text."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Temperature at which its tokens are drawn."""
    max_new_tokens: Positive
    """Maximum length of what it writes, which is cut off there."""

    def check(self, key: str, prompt: PromptSettings) -> None:
        """Raise ValueError if the prompt would get too little room."""
        if self.max_new_tokens > prompt.max_length // 2:
            raise ValueError(
                f"{key}.max_new_tokens: {self.max_new_tokens} leaves too little of "
                f"prompt.max_length = {prompt.max_length} for the prompt; at most half of it is "
                "allowed"
            )

    def misfits(
        self,
        learn: "Mapping[str, Term]",
        signals: "Mapping[str, Signal]",
        peers: Sequence[str],
    ) -> Iterator[tuple[str, str]]:
        """Yield each key that is incompatible with it, and why."""
        live = [n for n, t in learn.items() if t.signal is not None and signals[t.signal].is_live]
        for name, term in learn.items():
            if name not in live and not term.needs.choices:
                yield (
                    f"learn.{name}",
                    f"{term.kind} needs each question's response in advance, but with "
                    "on_policy the student writes its own; learn from a signal with live: true, or "
                    "remove on_policy",
                )
        if all(signals[str(learn[name].signal)].decides == "choice" for name in live):
            yield "on_policy", "no term learns from what it writes; learn from tokens, live: true"
        if len(peers) > 1:
            yield (
                "on_policy",
                f"{', '.join(peers)} learn from one another on the same text, which only one of "
                "them could have written; remove it",
            )
