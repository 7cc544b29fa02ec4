"""Learning rates that hold at every width.

Maximal update parametrisation (µP: Yang et al. 2022, arXiv 2203.03466, table 8, for Adam). With m
the width over the one at which the rate was found:

    embeddings          as they are
    hidden matrices     standard deviation / √m, learning rate / m
    logits              / m
    heads               of one size, so their 1/√d stays

The 1/m of the logits is in the final norm's gain, whose learning rate is divided by m, too: for
Adam, which divides by the gradient's size, that is the same, and any runtime can load the model.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

from firstkd.models.folding import final_norm

BASE_WIDTH = "mup_base_width"
"""In config.json, by which a training knows."""


def width_ratio(backbone: Any) -> float:
    """Return m, 1 for a model without µP."""
    config = backbone.config
    return float(config.hidden_size / getattr(config, BASE_WIDTH, config.hidden_size))


def hidden_matrices(backbone: Any) -> Iterator[nn.Parameter]:
    """Yield the matrices between embeddings and head."""
    embeddings = {
        weight
        for module in backbone.modules()
        if isinstance(module, nn.Embedding)
        for weight in module.parameters()
    }
    for weight in backbone.parameters():
        if weight not in embeddings and len(getattr(weight, "ds_shape", weight.shape)) >= 2:
            yield weight


def rates_of(backbone: Any) -> dict[nn.Parameter, float]:
    """Return by what the learning rate of weights is multiplied, where that is not 1."""
    ratio = width_ratio(backbone)
    if ratio == 1:
        return {}
    weights = [*hidden_matrices(backbone), *final_norm(backbone).parameters()]
    return dict.fromkeys(weights, 1 / ratio)
