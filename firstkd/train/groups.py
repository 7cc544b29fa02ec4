"""Parameter groups: which weights decay, and at which learning rate each is trained."""

from collections import defaultdict
from typing import Any

from torch import Tensor, nn

from firstkd.models.mup import rates_of
from firstkd.models.scoring import ResponseScorer

RATE = "rate"
"""Key of a group's factor on the schedule's learning rate."""


def groups_of(player: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the optimizer's groups: matrices, which decay, and vectors, which do not.

    Decay keeps weights small; norms and biases (vectors) have no reason to be. Weights with another
    rate (µP) form another group, but decay as much per step as the others: AdamW multiplies the
    decay by the rate, so the decay is divided by it here.
    """
    rates: dict[nn.Parameter, float] = {}
    for module in player.modules():
        if isinstance(module, ResponseScorer):
            rates |= rates_of(module.backbone)
    groups: defaultdict[tuple[float, bool], list[Tensor]] = defaultdict(list)
    groups[1.0, True], groups[1.0, False] = [], []  # in this order, even if one is empty
    for weight in player.parameters():
        if weight.requires_grad:
            groups[rates.get(weight, 1.0), _dimensions(weight) >= 2].append(weight)
    return [
        {"params": weights, "weight_decay": weight_decay / rate if decays else 0.0, RATE: rate}
        for (rate, decays), weights in groups.items()
    ]


def set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group[RATE]


def _dimensions(parameter: Tensor) -> int:
    """Return the whole weight's number of dimensions; ZeRO 3 leaves a flat, empty one."""
    return len(getattr(parameter, "ds_shape", parameter.shape))
