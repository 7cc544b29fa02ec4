"""Settings of what a student learns from."""

from typing import Literal, Self

from pydantic import model_validator

from firstkd.recalibration.settings import RecalibrationName
from firstkd.section import Section, Weight


class Arm(Section):
    """What one student learns from: weights of the objective's terms, and the targets' kind."""

    recalibration: RecalibrationName
    """Of the teacher's knowledge; `none` where only gold labels are used."""
    choices: Weight = 0.0
    """KL(teacher ‖ student) over the choices of a question."""
    tokens: Weight = 0.0
    """KL(teacher ‖ student) over the top-k tokens at every response token; where there is a weight
    for choices, too, this one falls linearly to 0 over the training."""
    gold_tokens: Weight = 0.0
    """Cross-entropy of the response's tokens."""
    tail: Literal["ghost", "renormalise"] = "ghost"
    """What `tokens` makes of the mass outside the top-k."""

    @model_validator(mode="after")
    def _learns_something(self) -> Self:
        if self.choices + self.tokens + self.gold_tokens == 0:
            raise ValueError("one of choices, tokens, gold_tokens must be above 0")
        return self
