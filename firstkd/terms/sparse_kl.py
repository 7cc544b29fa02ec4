"""The term `sparse_kl`: the student's next tokens against a signal's most probable ones."""

from typing import TYPE_CHECKING, ClassVar, Literal

from firstkd.data.prompts import Question
from firstkd.terms.base import SoftTerm, Sum
from firstkd.terms.divergence import FORWARD, AnyDivergence

if TYPE_CHECKING:
    from torch import Tensor

    from firstkd.models.view import View
    from firstkd.signals.target import AnyTarget


class SparseKl(SoftTerm):
    """Divergence at every token of right responses, from the top-k alone; counts tokens."""

    kind: Literal["sparse_kl"]
    decides: ClassVar[str] = "token"
    same_tokens: ClassVar[bool] = True

    tail: Literal["ghost", "renormalise"] = "ghost"
    """What becomes of the mass outside the top-k: one bin more, or nothing (as published)."""
    divergence: AnyDivergence = FORWARD

    def asks(self, target: "AnyTarget | None") -> "Tensor":
        from firstkd.signals.target import Target

        assert isinstance(target, Target)
        return target.ids_RK

    def count(self, question: Question) -> int:
        return 0 if question.gold is None else len(question.responses[question.gold])

    def __call__(self, view: "View", name: str, target: "AnyTarget | None") -> Sum:
        import torch

        from firstkd.signals.target import Target
        from firstkd.terms.divergences import sparse_kl

        assert isinstance(target, Target)
        found, wanted = view.tokens(name), target.probabilities_RK
        divergence = sparse_kl(
            wanted,
            target.tail_R,
            found.top_logprobs_RK,
            found.log_tail_R,
            self.tail,
            self.divergence,
        )
        with torch.no_grad():
            best = torch.maximum(found.top_logprobs_RK.amax(-1), found.best_of_tail_R)
            of_target = found.top_logprobs_RK.gather(-1, wanted.argmax(-1, keepdim=True))[:, 0]
            measures = {
                "agreement": (of_target == best).sum(),
                "head_mass": found.top_logprobs_RK.exp().sum(),
            }
        return Sum(divergence.sum(), len(wanted), measures)
