"""The term `adaptive_focal`: a focal loss on the right choice that follows the calibration."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from firstkd.data.prompts import Question
from firstkd.models.needs import Needs
from firstkd.section import Positive
from firstkd.terms.base import Sum, Term

if TYPE_CHECKING:
    from torch import nn

    from firstkd.models.view import View
    from firstkd.signals.target import AnyTarget


class AdaptiveFocal(Term):
    """−(1 − p)^γ log p, or −(1 + p)^−γ log p if γ < 0, with p = softmax(scores)[right] per question
    with choices; counts questions.

    Each confidence bin has a γ, which grows while the student is over-confident there on the
    calibration split and falls while it is not (AdaFocal, Ghosh et al. 2022, arXiv 2211.11838).
    """

    kind: Literal["adaptive_focal"]
    needs: ClassVar[Needs] = Needs(choices=True)
    adapts: ClassVar[bool] = True

    rounds: Positive = 10
    """How often per training the calibration questions are answered and γ is updated."""
    bins: Annotated[int, Field(ge=1, le=100)] = 15
    """Confidence bins, each with equally many calibration questions; 15 as in the paper."""

    def modules(self, pairs: int, widths: tuple[int, int]) -> "nn.ModuleList":
        from torch import nn

        from firstkd.terms.gammas import Gammas

        return nn.ModuleList([Gammas(self.rounds, self.bins)])

    def count(self, question: Question) -> int:
        return int(question.gold is not None and len(question.responses) > 1)

    def __call__(self, view: "View", name: str, target: "AnyTarget | None") -> Sum:
        from firstkd.terms.gammas import focal

        scores, gold = view.gold_choices
        right = scores.log_softmax(-1).gather(-1, gold[:, None])[:, 0]
        (gammas,) = view.modules[name]
        gamma = gammas(right.detach().exp())
        agree = (scores.argmax(-1) == gold).sum()
        measures = {"agreement": agree, "gamma": gamma.sum()}
        return Sum(focal(right, gamma).sum(), len(scores), measures)
