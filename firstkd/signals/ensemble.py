"""The signal `ensemble`: several teachers' choices side by side, so that they can disagree.

Each question has one decision per member. A recalibration is fitted to the decisions of all members
together, so that they are tempered alike and keep their disagreements.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from firstkd.data.examples import Example
from firstkd.data.prompts import Question
from firstkd.signals.base import Facts
from firstkd.signals.choices import CombinedChoices

if TYPE_CHECKING:
    from torch import Tensor

    from firstkd.signals.knowledge import Knowledge
    from firstkd.signals.store import Records


class Ensemble(CombinedChoices):
    """A question's records are those of the first member, then those of the next."""

    kind: Literal["ensemble"]
    decides: ClassVar[str] = "members' choice"

    def combined(self, keys: "Tensor", members: "Sequence[Records]") -> "Records":
        import torch

        from firstkd.signals.store import Records

        counts = members[0].counts
        parts_MR = torch.stack([found.columns["logprob"] for found in members])
        by_example = [part.flatten() for part in parts_MR.split(counts.tolist(), dim=1)]
        return Records({"logprob": torch.cat(by_example)}, counts * len(members))

    def decisions(self, records: "Records", facts: Facts) -> "Knowledge":
        """Return one decision per member of each question that has choices."""
        members = len(self.of)
        each = (records.counts // members).repeat_interleave(members)
        return super().decisions(replace(records, counts=each), facts)

    def records_of(self, question: Question) -> int:
        return super().records_of(question) * len(self.of)

    def decisions_of(self, question: Question) -> int:
        return super().decisions_of(question) * len(self.of)

    def is_right(
        self, decisions: "Knowledge", examples: Sequence[Example], questions: Sequence[Question]
    ) -> "Tensor":
        of_questions = super().is_right(decisions, examples, questions)
        return of_questions.repeat_interleave(len(self.of), dim=0)
