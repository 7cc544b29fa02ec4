"""The term `gold`: cross-entropy of the tokens of the right response."""

from typing import TYPE_CHECKING, Literal

from firstkd.data.prompts import Question
from firstkd.terms.base import Sum, Term

if TYPE_CHECKING:
    from firstkd.models.view import View
    from firstkd.signals.target import States, Target


class Gold(Term):
    """−Σ_t log p(y_t | x, y_<t) over the tokens y of right responses; counts tokens."""

    kind: Literal["gold"]

    def count(self, question: Question) -> int:
        return 0 if question.gold is None else len(question.responses[question.gold])

    def __call__(self, view: "View", name: str, target: "Target | States | None") -> Sum:
        right = view.logprobs_M[view.batch.is_gold_M]
        return Sum(-right.sum(), len(right), {})
