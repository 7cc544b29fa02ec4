"""The term `curriculum_kl`: decisions at a temperature that is learned against the student."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from firstkd.data.prompts import Question
from firstkd.models.needs import Needs
from firstkd.section import Share
from firstkd.terms.base import SoftTerm, Sum

if TYPE_CHECKING:
    from torch import nn

    from firstkd.models.view import View
    from firstkd.signals.target import AnyTarget


class CurriculumKl(SoftTerm):
    """T² KL(q_T ‖ p_T) over a question's choices, both at the same learned T; counts questions.

    T is trained alongside the student to increase the loss, by gradient reversal (CTKD, Li et al.
    2023, arXiv 2211.16231), within widening bounds: from easy to hard.
    """

    kind: Literal["curriculum_kl"]
    needs: ClassVar[Needs] = Needs(choices=True)
    decides: ClassVar[str] = "choice"

    lowest: Annotated[float, Field(gt=0)] = 1.0
    highest: Annotated[float, Field(gt=0)] = 5.0
    """Bounds of T, which starts between them."""
    rise: Share = 0.1
    """Share of the training over which T's reach grows from nothing to these bounds."""

    @model_validator(mode="after")
    def _bounds_leave_room(self) -> Self:
        if self.highest <= self.lowest:
            raise ValueError(f"highest: {self.highest:g} must be above lowest: {self.lowest:g}")
        return self

    def modules(self, pairs: int, widths: tuple[int, int]) -> "nn.ModuleList":
        from torch import nn

        from firstkd.terms.curriculum import AdverseTemperature

        return nn.ModuleList([AdverseTemperature(self.lowest, self.highest)])

    def count(self, question: Question) -> int:
        return int(len(question.responses) > 1)

    def __call__(self, view: "View", name: str, target: "AnyTarget | None") -> Sum:
        from firstkd.signals.target import Target
        from firstkd.terms.curriculum import reach, tempered_kl

        assert isinstance(target, Target)
        decides = view.batch.choice_mask_BC.sum(-1) > 1
        exists, scores = view.batch.choice_mask_BC[decides], view.choice_scores_BC[decides]
        wanted = target.probabilities_RK[:, : scores.shape[1]]
        (learned,) = view.modules[name]
        temperature = learned(reach(view.progress, self.rise)).to(scores.dtype)
        losses = tempered_kl(wanted, scores, exists, temperature)
        measures = {
            "agreement": (wanted.argmax(-1) == scores.argmax(-1)).sum(),
            "temperature": temperature.detach().sum() * len(scores),
        }
        return Sum(losses.sum(), len(scores), measures)
