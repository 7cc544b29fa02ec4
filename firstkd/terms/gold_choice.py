"""The term `gold_choice`: cross-entropy of the right choice among a question's choices."""

from typing import TYPE_CHECKING, ClassVar, Literal

from firstkd.data.prompts import Question
from firstkd.models.needs import Needs
from firstkd.terms.base import Sum, Term

if TYPE_CHECKING:
    from firstkd.models.view import View
    from firstkd.signals.target import States, Target


class GoldChoice(Term):
    """−log softmax(scores)[right] per question with choices; counts questions."""

    kind: Literal["gold_choice"]
    needs: ClassVar[Needs] = Needs(choices=True)

    def count(self, question: Question) -> int:
        return int(question.gold is not None and len(question.responses) > 1)

    def __call__(self, view: "View", name: str, target: "Target | States | None") -> Sum:
        batch = view.batch
        decides = (batch.choice_mask_BC.sum(-1) > 1) & (batch.gold_B >= 0)
        scores, gold = view.choice_scores_BC[decides], batch.gold_B[decides]
        logprobs = scores.log_softmax(-1).gather(-1, gold[:, None])[:, 0]
        agree = (scores.argmax(-1) == gold).sum()
        return Sum(-logprobs.sum(), len(scores), {"agreement": agree})
