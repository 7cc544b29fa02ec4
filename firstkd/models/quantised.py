"""Weights as a quantised file stores them, even while they are trained.

`q8_0` and `q4_0` are llama.cpp's (ggml-quants.c, quantize_row_q8_0_ref and quantize_row_q4_0_ref):
32 weights of a row share a float16 scale. Weights are rounded to bfloat16 first, because they are
saved in it.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils import parametrize

BLOCK = 32
"""Weights of a row that share a scale; the last block is padded with 0."""
AT_A_TIME = 2**20
"""Weights to round at a time, so that intermediate results stay in the processor's cache."""
Weights = Literal["q8_0", "q4_0"]
"""8 or 4 bits per weight, plus half a bit for its share of the scale."""


@torch.no_grad()
def quantised(weight: Tensor, weights: Weights) -> Tensor:
    """Return the values that a file stores for a weight [..., K], in the weight's own type."""
    *others, width = weight.shape
    rows = weight.reshape(-1, width)
    found = torch.empty_like(rows)
    count = max(1, AT_A_TIME // width)
    for part, place in zip(rows.split(count), found.split(count), strict=True):
        blocks = pad(part.bfloat16().float(), (0, -width % BLOCK)).unflatten(1, (-1, BLOCK))
        place.copy_(_OF_BLOCKS[weights](blocks).flatten(1)[:, :width])
    return found.view(*others, width)


@torch.no_grad()
def to_save(weight: Tensor, weights: Weights) -> Tensor:
    """Return a weight that `quantised`, like an export, rounds to exactly `quantised(weight)`.

    It is `quantised(weight)` itself, which bfloat16 moves by at most a quarter of a step. Only
    blocks whose scale needs more digits than float16 has (q8_0, weights below 0.008) may change a
    second time: they keep their trained values.
    """
    found = quantised(weight, weights)
    same, width = quantised(found, weights) == found, weight.shape[-1]
    blocks = pad(same, (0, -width % BLOCK), value=True).unflatten(-1, (-1, BLOCK))
    is_kept = blocks.all(-1, keepdim=True).expand_as(blocks).flatten(-2)[..., :width]
    return torch.where(is_kept, found, weight)


def _q8_0(blocks: Tensor) -> Tensor:
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    steps = blocks * _inverse(scale)
    size = steps.abs()
    whole = size.floor()  # halves round away from 0; torch.round rounds them to even
    whole += size.sub_(whole).mul_(2).floor_()
    return whole.copysign_(steps).mul_(scale.half().float())


def _q4_0(blocks: Tensor) -> Tensor:
    """The largest weight is −8 steps, whatever its sign, which leaves 7 on the other side."""
    scale = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True)) / -8
    steps = (blocks * _inverse(scale)).add_(8.5).trunc_().clamp_(0, 15).sub_(8)
    return steps.mul_(scale.half().float())


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0.0, 1 / scale)


_OF_BLOCKS = {"q8_0": _q8_0, "q4_0": _q4_0}


class _StraightThrough(torch.autograd.Function):
    """The gradient passes as if nothing had been rounded (Bengio et al. 2013, arXiv 1308.3432)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, weights: Weights) -> Tensor:
        return quantised(weight, weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class Rounding(nn.Module):
    """A parametrization that keeps the trained weight as it is, and uses it rounded."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.weights: Weights = weights

    def forward(self, weight: Tensor) -> Tensor:
        rounded: Tensor = _StraightThrough.apply(weight, self.weights)
        return rounded


def round_matrices(module: nn.Module, weights: Weights) -> None:
    """Make a module use each matrix as a file would store it, in place; vectors stay exact."""
    for part in [*module.modules()]:
        for name, parameter in [*part.named_parameters(recurse=False)]:
            if parameter.dim() > 1:
                # unsafe: skips a check that would round everything once more
                parametrize.register_parametrization(part, name, Rounding(weights), unsafe=True)


def keep_rounded(module: nn.Module, weights: Weights) -> None:
    """Undo `round_matrices`, leaving weights that it would round to the same values."""
    for part in [*module.modules()]:
        if isinstance(held := getattr(part, "parametrizations", None), nn.ModuleDict):
            for name in [*held]:
                parametrize.remove_parametrizations(part, name, leave_parametrized=False)
                parameter = getattr(part, name)
                parameter.data.copy_(to_save(parameter.data, weights))
