"""Settings of models."""

from firstkd.section import Positive, Section


class PruneSettings(Section):
    layers: Positive
    """Of the base model's decoder layers, so many are kept."""
    examples: Positive
    """Training examples on which each layer's influence is measured."""
    micro_batch_size: Positive
    micro_batch_tokens: Positive
    """Tokens per forward pass, at most, padding included."""


class LoraSettings(Section):
    """Train two small matrices beside each linear layer instead of all weights (Hu et al. 2021)."""

    rank: Positive
    alpha: Positive
    """What they add counts alpha / rank times."""
