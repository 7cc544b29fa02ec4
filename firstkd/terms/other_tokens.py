"""Terms on right responses whose tokens may come from a tokenizer other than the student's."""

from typing import ClassVar

from firstkd.data.prompts import Question
from firstkd.signals.base import Signal
from firstkd.terms.base import SignalTerm


class OtherTokensTerm(SignalTerm):
    """Counts the student's tokens of right responses."""

    decides: ClassVar[str] = "token"
    other_tokens: ClassVar[bool] = True

    def misfit(self, signal: Signal) -> str | None:
        if signal.is_live:
            return (
                f"signals.{self.from_} is live, so its model reads the student's tokens; set live: "
                "false there, or use sparse_kl"
            )
        if signal.is_sampled:
            return (
                f"signals.{self.from_} keeps draws, which only sparse_kl can learn from; set "
                "select: { kind: top_k, … } there"
            )
        if signal.is_own_text:
            return (
                f"signals.{self.from_} holds its model's own answers, which the student must "
                "split into the same tokens; use sparse_kl"
            )
        return super().misfit(signal)

    def count(self, question: Question) -> int:
        return 0 if question.gold is None else len(question.responses[question.gold])
