"""The term `hard_choice`: cross-entropy of the choice that a signal finds most probable."""

from typing import TYPE_CHECKING, ClassVar, Literal

from firstkd.data.prompts import Question
from firstkd.models.needs import Needs
from firstkd.terms.base import SignalTerm, Sum

if TYPE_CHECKING:
    from firstkd.models.view import View
    from firstkd.signals.target import AnyTarget


class HardChoice(SignalTerm):
    """−log softmax(scores)[arg max of the signal] per question with choices; counts questions.

    The signal labels the questions, with or without a known answer; its confidence is unused, so
    there is nothing to recalibrate. If choices are equally probable, the first is the label.
    """

    kind: Literal["hard_choice"]
    needs: ClassVar[Needs] = Needs(choices=True)
    decides: ClassVar[str] = "choice"

    def count(self, question: Question) -> int:
        return int(len(question.responses) > 1)

    def __call__(self, view: "View", name: str, target: "AnyTarget | None") -> Sum:
        from firstkd.signals.target import Target

        assert isinstance(target, Target)
        scores = view.choice_scores_BC[view.batch.choice_mask_BC.sum(-1) > 1]
        label = target.probabilities_RK.argmax(-1)
        logprobs = scores.log_softmax(-1).gather(-1, label[:, None])[:, 0]
        agree = (scores.argmax(-1) == label).sum()
        return Sum(-logprobs.sum(), len(scores), {"agreement": agree})
