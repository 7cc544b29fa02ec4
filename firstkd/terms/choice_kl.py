"""The term `choice_kl`: the student's decision between choices against a signal's."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from firstkd.data.prompts import Question
from firstkd.models.needs import Needs
from firstkd.section import Share
from firstkd.terms.base import SoftTerm, Sum
from firstkd.terms.divergence import FORWARD, AnyDivergence

if TYPE_CHECKING:
    from firstkd.models.view import View
    from firstkd.signals.target import AnyTarget


class ChoiceKl(SoftTerm):
    """Divergence of softmax(scores) from the target over a question's choices; counts questions.

    If the answer is known, `gold_share` g moves the target towards it: (1 − g) · signal + g ·
    answer, so that the target itself corrects the signal's mistakes (as in Hinton et al. 2015,
    sec. 2, where both share a loss).
    """

    kind: Literal["choice_kl"]
    needs: ClassVar[Needs] = Needs(choices=True)
    decides: ClassVar[str] = "choice"

    gold_share: Share = 0.0
    """Share of the target given to the right choice, if it is known."""
    divergence: AnyDivergence = FORWARD
    student_temperature: Annotated[float, Field(gt=0)] = 1.0
    """T: T² times the divergence of softmax(scores / T) (Hinton et al. 2015, sec. 2)."""

    def count(self, question: Question) -> int:
        return int(len(question.responses) > 1)

    def __call__(self, view: "View", name: str, target: "AnyTarget | None") -> Sum:
        from firstkd.signals.target import Target
        from firstkd.terms.divergences import choice_kl, with_gold

        assert isinstance(target, Target)
        decides = view.batch.choice_mask_BC.sum(-1) > 1
        scores = view.choice_scores_BC[decides]
        wanted = target.probabilities_RK[:, : scores.shape[1]]
        if self.gold_share:
            wanted = with_gold(wanted, view.batch.gold_B[decides], self.gold_share)
        parted = choice_kl(wanted, scores, self.divergence, self.student_temperature)
        agree = (wanted.argmax(-1) == scores.argmax(-1)).sum()
        return Sum(parted.sum(), len(scores), {"agreement": agree})
