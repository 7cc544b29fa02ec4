"""The term `choice_kl`: the student's decision between choices against a signal's."""

from typing import TYPE_CHECKING, ClassVar, Literal

from firstkd.data.prompts import Question
from firstkd.models.needs import Needs
from firstkd.terms.base import SoftTerm, Sum

if TYPE_CHECKING:
    from firstkd.models.view import View
    from firstkd.signals.target import Target


class ChoiceKl(SoftTerm):
    """KL(target ‖ softmax(scores)) over the choices of a question; counts questions."""

    kind: Literal["choice_kl"]
    needs: ClassVar[Needs] = Needs(choices=True)
    decides: ClassVar[str] = "choice"

    def count(self, question: Question) -> int:
        return int(len(question.responses) > 1)

    def __call__(self, view: "View", name: str, target: "Target | None") -> Sum:
        from firstkd.terms.divergences import choice_kl

        assert target is not None
        scores = view.choice_scores_BC[view.batch.choice_mask_BC.sum(-1) > 1]
        wanted = target.probabilities_RK[:, : scores.shape[1]]
        agree = (wanted.argmax(-1) == scores.argmax(-1)).sum()
        return Sum(choice_kl(wanted, scores).sum(), len(scores), {"agreement": agree})
