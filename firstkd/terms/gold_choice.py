"""The term `gold_choice`: the right choice among a question's choices."""

from typing import TYPE_CHECKING, ClassVar, Literal

from firstkd.data.prompts import Question
from firstkd.models.needs import Needs
from firstkd.terms.base import Sum, Term
from firstkd.terms.gold_loss import CROSS_ENTROPY, AnyGoldLoss

if TYPE_CHECKING:
    from firstkd.models.view import View
    from firstkd.signals.target import AnyTarget


class GoldChoice(Term):
    """−log softmax(scores)[right] per question with choices; counts questions.

    `loss` replaces −log p; the candidates of label smoothing are the question's choices.
    """

    kind: Literal["gold_choice"]
    needs: ClassVar[Needs] = Needs(choices=True)
    loss: AnyGoldLoss = CROSS_ENTROPY

    def count(self, question: Question) -> int:
        return int(question.gold is not None and len(question.responses) > 1)

    def __call__(self, view: "View", name: str, target: "AnyTarget | None") -> Sum:
        scores, gold = view.gold_choices
        logprobs = scores.log_softmax(-1)
        right = logprobs.gather(-1, gold[:, None])[:, 0]
        exists = ~scores.isneginf()
        mean = logprobs.masked_fill(~exists, 0.0).sum(-1) / exists.sum(-1)
        agree = (scores.argmax(-1) == gold).sum()
        return Sum(self.loss(right, mean).sum(), len(scores), {"agreement": agree})
