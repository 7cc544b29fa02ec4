"""The term `gold`: the tokens of the right response."""

from typing import TYPE_CHECKING, Literal

from firstkd.data.prompts import Question
from firstkd.terms.base import Sum, Term
from firstkd.terms.gold_loss import CROSS_ENTROPY, AnyGoldLoss

if TYPE_CHECKING:
    from firstkd.models.view import View
    from firstkd.signals.target import AnyTarget


class Gold(Term):
    """−Σ_t log p(y_t | x, y_<t) over the tokens y of right responses; counts tokens.

    `loss` replaces −log p; the candidates of label smoothing are the whole vocabulary.
    """

    kind: Literal["gold"]
    loss: AnyGoldLoss = CROSS_ENTROPY

    @property
    def asks_vocabulary(self) -> bool:
        return self.loss.asks_mean

    def count(self, question: Question) -> int:
        return 0 if question.gold is None else len(question.responses[question.gold])

    def __call__(self, view: "View", name: str, target: "AnyTarget | None") -> Sum:
        is_gold = view.batch.is_gold_M
        mean = view.mean_logprobs_M[is_gold] if self.asks_vocabulary else None
        losses = self.loss(view.logprobs_M[is_gold], mean)
        return Sum(losses.sum(), len(losses), {})
