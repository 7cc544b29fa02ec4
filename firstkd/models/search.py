"""The shapes that a student within a parameter budget can have: how many layers, how wide."""

from typing import Any, NamedTuple, Self

from firstkd.errors import ConfigError
from firstkd.models.layers import decoder_layers
from firstkd.models.neurons import GATED, feed_forwards

STEP = 16
"""Widths are multiples of this: matrices of other sizes gain nothing."""


class Shape(NamedTuple):
    """How a model's parameters break down, if all its layers are alike."""

    outside: int
    """Embeddings, head and last norm."""
    layers: int
    layer: int
    """Parameters of a layer."""
    width: int
    """Feed-forward neurons of a layer."""
    neuron: int
    """Parameters of a neuron."""

    @classmethod
    def of(cls, model: Any) -> Self:
        """Raises ArtifactError for a family that cannot be narrowed."""
        layers, [block, *_] = decoder_layers(model), feed_forwards(model)
        inside = [sum(weight.numel() for weight in layer.parameters()) for layer in layers]
        width = model.config.intermediate_size
        gate, up, down = (getattr(block, name) for name in GATED)
        biases = sum(matrix.bias is not None for matrix in (gate, up))
        neuron = gate.in_features + up.in_features + down.out_features + biases
        return cls(model.num_parameters() - sum(inside), len(inside), inside[0], width, neuron)

    def parameters(self, layers: int, width: int) -> int:
        return self.outside + layers * (self.layer - (self.width - width) * self.neuron)

    def widest(self, layers: int, most: int) -> int:
        """Return the most neurons per layer that a budget allows; 0 if not even STEP fit."""
        spare = most - self.parameters(layers, 0)
        return min(self.width, max(0, spare // (layers * self.neuron)) // STEP * STEP)

    def depths(self, fewest: int, most: int) -> tuple[int, int]:
        """Return the fewest and the most layers that fit a budget.

        Raises ConfigError if none do.
        """
        fitting = [n for n in range(fewest, self.layers + 1) if self.widest(n, most)]
        if not fitting:
            raise ConfigError(
                f"max_parameters: {most:,}, but {fewest} layers with {STEP} neurons each have "
                f"{self.parameters(fewest, STEP):,} (the model has {self.layers} layers); raise it "
                "or lower min_layers"
            )
        return fitting[0], fitting[-1]
