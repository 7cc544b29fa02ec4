"""The term `uld`: how probability is spread over the next token, whatever tokens these are."""

from typing import TYPE_CHECKING, Literal

from firstkd.terms.base import SoftTerm, Sum
from firstkd.terms.other_tokens import OtherTokensTerm

if TYPE_CHECKING:
    from firstkd.models.view import View
    from firstkd.signals.target import AnyTarget


class Uld(OtherTokensTerm, SoftTerm):
    """Universal logit distillation (Boizard et al. 2024, arXiv 2402.12030).

    Σ_i |p_(i) − q_(i)| over the i-th most probable tokens, at the t-th token of a right response in
    both models' tokens; tokens without a counterpart add nothing. Here i goes up to the k that the
    signal knows, and all others form one more. Counts the student's tokens.

    Which tokens they are plays no part: this is the simple rival of `alm`.
    """

    kind: Literal["uld"]

    def asks(self, target: "AnyTarget | None") -> int:
        from firstkd.signals.target import OtherTokens

        assert isinstance(target, OtherTokens)
        return target.probabilities_TK.shape[1]

    def __call__(self, view: "View", name: str, target: "AnyTarget | None") -> Sum:
        from firstkd.signals.target import OtherTokens
        from firstkd.terms.divergences import same_places

        assert isinstance(target, OtherTokens)
        found, batch = view.tokens(name), view.batch
        question_R = batch.response_of_M[batch.is_gold_M] // batch.choice_mask_BC.shape[1]
        counts_B = question_R.bincount(minlength=len(target.counts_B))
        ours, theirs = same_places(counts_B, target.counts_B)
        # a recalibration may have changed the order
        wanted = target.probabilities_TK.sort(-1, descending=True).values[theirs]
        head = (found.top_logprobs_RK[ours].exp() - wanted).abs().sum(-1)
        tail = (found.log_tail_R[ours].exp() - target.tail_T[theirs]).abs()
        return Sum((head + tail).sum(), len(question_R), {})
