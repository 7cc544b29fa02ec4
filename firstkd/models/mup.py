"""Learning rates that transfer to every width.

Maximal update parametrisation (µP: Yang et al. 2022, arXiv 2203.03466, table 8, for Adam). With m
the width divided by that at which the rate was tuned:

    embeddings          unchanged
    hidden matrices     standard deviation / √m, learning rate / m
    logits              / m
    heads               the same size at every width, so their 1/√d stays

The logits' 1/m is in the final norm's gain, whose learning rate is divided by m, too: for Adam,
which normalises by the gradient's size, that is equivalent, and any runtime can load the model.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

from firstkd.models.folding import final_norm

BASE_WIDTH = "mup_base_width"
"""Key in config.json from which training computes m."""


def width_ratio(backbone: Any) -> float:
    """Return m; 1 for a model without µP."""
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
    """Return the factor on the learning rate of each weight for which it is not 1."""
    ratio = width_ratio(backbone)
    if ratio == 1:
        return {}
    weights = [*hidden_matrices(backbone), *final_norm(backbone).parameters()]
    return dict.fromkeys(weights, 1 / ratio)
