"""Models of one family at any width, with random weights."""

from math import gcd
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from firstkd.errors import ArtifactError, ConfigError
from firstkd.models.folding import fold_temperature
from firstkd.models.mup import BASE_WIDTH, hidden_matrices, width_ratio
from firstkd.models.pruning import keep_layers


def shape_at(config: Any, hidden_size: int) -> dict[str, int]:
    """Return a config's sizes at another width, with heads of the same size.

    Raises ConfigError for a width that would need fractions of heads or neurons.
    """
    names = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    sizes = {n: size for n in names if (size := getattr(config, n, None)) is not None}
    smallest = config.hidden_size // gcd(config.hidden_size, *sizes.values())
    if hidden_size % smallest:
        raise ConfigError(
            f"hidden_size: {hidden_size} would need fractions of heads or neurons, scaled from "
            f"{config.model_type}'s {config.hidden_size}; set a multiple of {smallest}"
        )
    scaled = {name: size * hidden_size // config.hidden_size for name, size in sizes.items()}
    return {"hidden_size": hidden_size, **scaled}


def random_model(
    config: Any, hidden_size: int, layers: int, base_width: int | None, seed: int
) -> Any:
    """Return a float32 model with random weights; a `base_width` scales them by µP.

    Raises ConfigError as `shape_at` does, and ArtifactError for a family whose logits cannot be
    scaled as µP requires.
    """
    for name, size in shape_at(config, hidden_size).items():
        setattr(config, name, size)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    keep_layers(model, range(layers))
    if base_width is not None:
        setattr(model.config, BASE_WIDTH, base_width)
        _scale(model)
    return model


@torch.no_grad()
def _scale(model: Any) -> None:
    ratio = width_ratio(model.base_model)
    for matrix in hidden_matrices(model.base_model):
        matrix.div_(ratio**0.5)
    if not fold_temperature(model, ratio):
        raise ArtifactError(
            f"{model.config.model_type}: scaling its last norm does not scale its logits, so µP is "
            "not supported; set base_width to null"
        )
