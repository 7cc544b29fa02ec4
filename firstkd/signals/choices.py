"""The signal `choices`: a model's log-probabilities of each question's choices.

Choices are strings, so this signal can teach students with any tokenizer.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from firstkd.data.examples import Example, right_choices
from firstkd.data.prompts import Question
from firstkd.models.needs import Needs
from firstkd.section import Name
from firstkd.signals.base import CapturedSignal, CombinedSignal, Facts, Signal

if TYPE_CHECKING:
    from torch import Tensor

    from firstkd.models.settings import ModelSettings
    from firstkd.models.view import View
    from firstkd.signals.asked import AskedTeacher
    from firstkd.signals.columns import Layout
    from firstkd.signals.knowledge import Knowledge
    from firstkd.signals.store import Records


class OfChoices(Signal):
    """A signal whose decisions are between the choices of questions."""

    decides: ClassVar[str] = "choice"

    def layout(self, vocabulary_size: int, hidden_size: int = 0) -> "Layout":
        import torch

        from firstkd.signals.columns import Column

        return {"logprob": Column(torch.float32)}

    def decisions(self, records: "Records", facts: Facts) -> "Knowledge":
        """Return one decision per question that has choices, padded to the most choices."""
        import torch

        from firstkd.signals.knowledge import Knowledge

        counts = records.counts[records.counts > 0]
        width = int(counts.max()) if len(counts) else 1  # K is never 0: arg max needs one
        of_choices = records.columns["logprob"]
        logprobs = of_choices.new_full((len(counts), width), -torch.inf)
        logprobs[torch.arange(width) < counts[:, None]] = of_choices
        return Knowledge.of_choices(logprobs)

    def records_of(self, question: Question) -> int:
        return len(question.responses) if len(question.responses) > 1 else 0

    def decisions_of(self, question: Question) -> int:
        return int(self.records_of(question) > 0)

    def is_right(
        self, decisions: "Knowledge", examples: Sequence[Example], questions: Sequence[Question]
    ) -> "Tensor":
        import torch

        decided = [example for example in examples if len(example.choices or ()) > 1]
        return torch.from_numpy(right_choices(decided, decisions.top_ids.shape[1]))


class CombinedChoices(OfChoices, CombinedSignal):
    """A signal computed from several signals of choices."""

    combines: ClassVar[str] = "choice"
    """What its members decide."""

    of: Annotated[list[Name], Field(min_length=2)]

    @property
    def signals(self) -> tuple[str, ...]:
        return tuple(self.of)

    def check(
        self, signals: Mapping[str, Signal], models: "Mapping[str, ModelSettings]"
    ) -> str | None:
        for name in self.of:
            if signals[name].decides != self.combines:
                return (
                    f"of: {name!r} is a signal of {signals[name].decides}s; only signals of "
                    "choices can be combined, because two models' top tokens differ"
                )
        return None


class Choices(OfChoices, CapturedSignal):
    kind: Literal["choices"]
    needs: ClassVar[Needs] = Needs(choices=True)

    def capture(self, view: "View", vocabulary_size: int) -> "Records":
        return choice_records(view.choice_scores_BC.log_softmax(-1))

    def ask(
        self, teacher: "AskedTeacher", examples: Sequence[Example], questions: Sequence[Question]
    ) -> "Records":
        return choice_records(teacher.choices(examples, questions))


def choice_records(logprobs_BC: "Tensor") -> "Records":
    """Return one record per choice; `logprobs_BC` is −inf where a question has no such choice.

    A question with a single response decides nothing and gets no record.
    """
    from firstkd.signals.store import Records

    exists = logprobs_BC.isfinite()
    exists = exists & (exists.sum(-1, keepdim=True) > 1)
    return Records({"logprob": logprobs_BC[exists].cpu()}, exists.sum(-1).cpu())
