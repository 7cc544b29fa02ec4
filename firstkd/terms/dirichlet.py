"""The term `dirichlet`: the student's decisions against the spread among several teachers."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from firstkd.data.prompts import Question
from firstkd.models.needs import Needs
from firstkd.terms.base import SoftTerm, Sum

if TYPE_CHECKING:
    from firstkd.models.view import View
    from firstkd.signals.target import AnyTarget


class Dirichlet(SoftTerm):
    """Ensemble distribution distillation: the student is a Dirichlet distribution over a question's
    choices, α_c = exp(s_c + b) + 1 with its scores s; counts questions.

    Its mode is softmax(s), the student's decision. Its sharpness comes from the level of the
    scores, which softmax ignores and the exported student keeps.
    """

    kind: Literal["dirichlet"]
    needs: ClassVar[Needs] = Needs(choices=True)
    decides: ClassVar[str] = "members' choice"

    target: Literal["proxy", "samples"] = "proxy"
    """`proxy`: KL(Dir(α) ‖ Dir(β))/β₀, with β the Dirichlet distribution fitted to the members
    (Ryabinin et al. 2021, arXiv 2105.06987, sec. 3). `samples`: mean over members m of
    −log Dir(q_m; α) (Malinin et al. 2020, arXiv 1905.00076, sec. 3)."""
    offset: Annotated[float, Field(ge=0, le=12)] = 6.0
    """b. Scores are mean log-probabilities, below 0, so each α is at most e^b + 1: nothing
    explodes when members agree."""

    def count(self, question: Question) -> int:
        return int(len(question.responses) > 1)

    def __call__(self, view: "View", name: str, target: "AnyTarget | None") -> Sum:
        from firstkd.signals.target import Target
        from firstkd.terms.dirichlets import negative_log_likelihood, proxy_divergence

        assert isinstance(target, Target)
        exists = view.batch.choice_mask_BC
        exists = exists[exists.sum(-1) > 1]
        scores = view.choice_scores_BC[view.batch.choice_mask_BC.sum(-1) > 1]
        members = target.probabilities_RK[:, : scores.shape[1]]
        members = members.unflatten(0, (len(scores), -1 if len(scores) else 1))
        loss = proxy_divergence if self.target == "proxy" else negative_log_likelihood
        losses = loss(scores, members, exists, self.offset)
        agree = (members.mean(1).argmax(-1) == scores.argmax(-1)).sum()
        return Sum(losses.sum(), len(scores), {"agreement": agree})
