"""The loss of a right answer: a function of its probability, and of the other candidates'.

Each kind is a settings class; called with log p of the right candidates and, if it needs it, the
mean log p over all candidates, it returns the losses.
"""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from firstkd.section import Section

if TYPE_CHECKING:
    from torch import Tensor


class GoldLoss(Section):
    kind: str
    asks_mean: ClassVar[bool] = False
    """Whether the mean log-probability over all candidates is needed."""

    def __call__(self, right: "Tensor", mean: "Tensor | None") -> "Tensor":
        """Return the losses, in the shape of both."""
        raise NotImplementedError


class CrossEntropy(GoldLoss):
    """−log p."""

    kind: Literal["cross_entropy"]

    def __call__(self, right: "Tensor", mean: "Tensor | None") -> "Tensor":
        return -right


class LabelSmoothing(GoldLoss):
    """Cross-entropy of (1 − ε) · answer + ε/C over the C candidates (Szegedy et al. 2016, sec. 7).

    Teacher-free distillation (Tf-KD_reg, Yuan et al. 2020) is this with another name for ε.
    """

    kind: Literal["label_smoothing"]
    asks_mean: ClassVar[bool] = True
    epsilon: Annotated[float, Field(gt=0, lt=1)] = 0.1

    def __call__(self, right: "Tensor", mean: "Tensor | None") -> "Tensor":
        assert mean is not None
        return -right.lerp(mean, self.epsilon)


class Focal(GoldLoss):
    """−(1 − p)^γ log p (Lin et al. 2017, eq. 4): answers that are already right count less."""

    kind: Literal["focal"]
    gamma: Annotated[float, Field(gt=0, le=10)] = 3.0

    def __call__(self, right: "Tensor", mean: "Tensor | None") -> "Tensor":
        return -(wrong(right) ** self.gamma) * right


class SampleDependentFocal(GoldLoss):
    """Focal loss with γ = 5 where p < 0.2 and γ = 3 elsewhere (FLSD-53, Mukhoti et al. 2020,
    arXiv 2002.09437, sec. 5), so that the least probable answers keep the steepest loss."""

    kind: Literal["flsd"]

    def __call__(self, right: "Tensor", mean: "Tensor | None") -> "Tensor":
        import torch

        rest = wrong(right)
        return -torch.where(rest > 0.8, rest**5, rest**3) * right


def wrong(logprobs: "Tensor") -> "Tensor":
    """Return 1 − p, kept above 0 so that its powers have a finite slope where p rounds to 1."""
    import torch

    return -logprobs.expm1().clamp_max(-torch.finfo(logprobs.dtype).eps)


AnyGoldLoss = Annotated[
    CrossEntropy | LabelSmoothing | Focal | SampleDependentFocal, Field(discriminator="kind")
]
CROSS_ENTROPY = CrossEntropy(kind="cross_entropy")
