"""How far a student's distribution p is from its target q, as a sum over candidates.

Each kind is a settings class; called with q and log p, it returns each candidate's part.
"""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from firstkd.section import Section

if TYPE_CHECKING:
    from torch import Tensor

TailPolicy = Literal["ghost", "renormalise"]
"""What becomes of the mass outside the top-k: it gets a bin, or is dropped (as published)."""
FLOOR = 1e-8
"""What a target of 0 counts as in the reverse divergence, which would be infinite there."""


class Divergence(Section):
    kind: str

    def __call__(self, target: "Tensor", logprobs: "Tensor") -> "Tensor":
        """Return the parts, in the shape of both; log p must be finite even where q and p are 0."""
        raise NotImplementedError


class Forward(Divergence):
    """KL(q ‖ p)."""

    kind: Literal["forward"]

    def __call__(self, target: "Tensor", logprobs: "Tensor") -> "Tensor":
        import torch

        return torch.xlogy(target, target) - target * logprobs


class Reverse(Divergence):
    """KL(p ‖ q), which makes a student surer of what it already prefers (MiniLLM, Gu et al. 2024,
    arXiv 2306.08543)."""

    kind: Literal["reverse"]

    def __call__(self, target: "Tensor", logprobs: "Tensor") -> "Tensor":
        return logprobs.exp() * (logprobs - target.clamp_min(FLOOR).log())


class JensenShannon(Divergence):
    """β KL(q ‖ m) + (1 − β) KL(p ‖ m), m = βq + (1 − β)p (GKD, Agarwal et al. 2024, eq. 1)."""

    kind: Literal["jsd"]
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5

    def __call__(self, target: "Tensor", logprobs: "Tensor") -> "Tensor":
        import torch

        probs, tiny = logprobs.exp(), torch.finfo(logprobs.dtype).tiny
        log_mixture = target.lerp(probs, 1 - self.beta).clamp_min(tiny).log()
        of_target = torch.xlogy(target, target) - target * log_mixture
        return self.beta * of_target + (1 - self.beta) * probs * (logprobs - log_mixture)


class Skew(Divergence):
    """KL(q ‖ αq + (1 − α)p) (DistiLLM, Ko et al. 2024, eq. 3)."""

    kind: Literal["skew"]
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.1

    def __call__(self, target: "Tensor", logprobs: "Tensor") -> "Tensor":
        import torch

        tiny = torch.finfo(logprobs.dtype).tiny
        log_mixture = target.lerp(logprobs.exp(), 1 - self.alpha).clamp_min(tiny).log()
        return torch.xlogy(target, target) - target * log_mixture


AnyDivergence = Annotated[Forward | Reverse | JensenShannon | Skew, Field(discriminator="kind")]
FORWARD = Forward(kind="forward")
