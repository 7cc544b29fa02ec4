"""The term `sparse_kl`: the student's next tokens against a signal's most probable ones."""

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from firstkd.data.prompts import Question
from firstkd.signals.base import Signal
from firstkd.terms.base import SoftTerm, Sum
from firstkd.terms.divergence import FORWARD, AnyDivergence, TailPolicy

if TYPE_CHECKING:
    from torch import Tensor

    from firstkd.models.view import View
    from firstkd.signals.target import AnyTarget


class SparseKl(SoftTerm):
    """Divergence at the tokens of right responses, from the top-k only; counts tokens."""

    kind: Literal["sparse_kl"]
    decides: ClassVar[str] = "token"
    same_tokens: ClassVar[bool] = True

    tail: TailPolicy = "ghost"
    divergence: AnyDivergence = FORWARD
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of each response's tokens that count, at least one: those where the student is least
    sure, by its entropy over the vocabulary (SE-KD, arXiv 2602.01395)."""

    @property
    def asks_vocabulary(self) -> bool:
        return self.share < 1

    def misfit(self, signal: Signal) -> str | None:
        if signal.is_sampled and (self.tail != "ghost" or self.divergence != FORWARD):
            return (
                f"signals.{self.from_} keeps draws, which are unbiased only for tail: ghost "
                "and divergence: { kind: forward }; set both, or select: { kind: top_k, … } there"
            )
        return super().misfit(signal)

    def asks(self, target: "AnyTarget | None") -> "Tensor":
        from firstkd.signals.target import Target

        assert isinstance(target, Target)
        return target.ids_RK

    def count(self, question: Question) -> int:
        if question.gold is None:
            return 0
        return self._counted(len(question.responses[question.gold]))

    def _counted(self, tokens: int) -> int:
        return math.ceil(round(self.share * tokens, 6))

    def __call__(self, view: "View", name: str, target: "AnyTarget | None") -> Sum:
        import torch

        from firstkd.signals.target import Target
        from firstkd.terms.divergences import sparse_kl, without_absent

        assert isinstance(target, Target)
        rows, found = self._rows(view), view.tokens(name)
        wanted, tail = target.probabilities_RK[rows], target.tail_R[rows]
        logprobs, log_tail = without_absent(
            wanted, found.top_logprobs_RK[rows], found.log_tail_R[rows]
        )
        divergence = sparse_kl(wanted, tail, logprobs, log_tail, self.tail, self.divergence)
        with torch.no_grad():
            best = torch.maximum(found.top_logprobs_RK.amax(-1), found.best_of_tail_R)[rows]
            of_target = logprobs.gather(-1, wanted.argmax(-1, keepdim=True))[:, 0]
            measures = {
                "agreement": (of_target == best).sum(),
                "head_mass": logprobs.exp().sum(),
            }
        return Sum(divergence.sum(), len(wanted), measures)

    def _rows(self, view: "View") -> "Tensor | slice":
        """Return which of the batch's decisions count."""
        from firstkd.terms.divergences import most_uncertain

        if self.share == 1:
            return slice(None)
        batch = view.batch
        response_R = batch.response_of_M[batch.is_gold_M]
        tokens = response_R.bincount().tolist()
        limits = response_R.new_tensor([self._counted(count) for count in tokens])
        return most_uncertain(view.entropy_R, response_R, limits)
