"""The term `alm`: the probability of chunks of text, whatever tokens they are cut into."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from firstkd.terms.base import Sum
from firstkd.terms.other_tokens import OtherTokensTerm

if TYPE_CHECKING:
    from torch import Tensor

    from firstkd.models.view import View
    from firstkd.signals.target import AnyTarget

MOST = -1e-6
"""Highest log-probability used; above it, the mass of all other texts is lost to rounding."""


class Alm(OtherTokensTerm):
    """Approximate likelihood matching (Minixhofer et al. 2025, arXiv 2503.20083).

    τ KL(Bernoulli(q^(1/τ)) ‖ Bernoulli(p^(1/τ))) for each chunk of a right response, with q and p
    the two models' probabilities of its text after everything before it. Chunks are the smallest
    pieces whose ends both tokenizers share. Counts the student's tokens.

    The factor τ, which is not in the paper, keeps the size of the gradient; the paper's binary
    cross-entropy has the same gradient as the divergence.
    """

    kind: Literal["alm"]
    columns: ClassVar[tuple[str, ...]] = ("gold_logprob",)

    temperature: Annotated[float, Field(gt=0)] = 100.0
    """τ: the higher it is, the more weight chunks get that both models find improbable."""

    def __call__(self, view: "View", name: str, target: "AnyTarget | None") -> Sum:
        from firstkd.signals.target import OtherTokens

        assert isinstance(target, OtherTokens)
        right_R = view.logprobs_M[view.batch.is_gold_M]
        theirs_T = target.gold_logprob_T.to(right_R.dtype)
        ours = right_R.new_zeros(target.chunks + 1).index_add(0, target.chunk_R, right_R)[:-1]
        theirs = theirs_T.new_zeros(target.chunks + 1).index_add(0, target.chunk_T, theirs_T)[:-1]
        return Sum(self.divergence(theirs, ours).sum(), len(right_R), {})

    def divergence(self, target: "Tensor", logprobs: "Tensor") -> "Tensor":
        """Return each chunk's divergence from two log-probabilities."""
        log_q, log_p = (each.clamp_max(MOST) / self.temperature for each in (target, logprobs))
        others_q, others_p = -log_q.expm1(), -log_p.expm1()
        parted = log_q.exp() * (log_q - log_p) + others_q * (others_q.log() - others_p.log())
        return self.temperature * parted
