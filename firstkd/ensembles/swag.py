"""SWAG: weights drawn from a normal distribution fitted to snapshots of one training."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from firstkd.ensembles.base import Draws, Ensemble
from firstkd.errors import ConfigError
from firstkd.section import Name

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from transformers import PreTrainedModel


class Swag(Ensemble):
    """θ = θ̄ + (Σ_diag^½ z + D y / √(K − 1)) / √2, z and y standard normal (Maddox et al. 2019,
    eq. 1).

    θ̄ is the mean of the K models' weights, D their deviations from it, Σ_diag the mean squares of
    D. The models must be snapshots of one training: averages of unrelated ones are useless.
    """

    kind: Literal["swag"]
    of: Annotated[list[Name], Field(min_length=2)]
    draws: Draws = 10

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self.of)

    def check(self, networks: "Sequence[PreTrainedModel]") -> None:
        first, *others = ({n: p.shape for n, p in each.named_parameters()} for each in networks)
        for name, other in zip(self.of[1:], others, strict=True):
            if other != first:
                raise ConfigError(
                    f"of: {name}'s weights do not match {self.of[0]}'s, so they cannot be "
                    "averaged; name snapshots of one training run"
                )

    def passes(
        self, networks: "Sequence[PreTrainedModel]", fitted: "Tensor | None", seed: int
    ) -> Iterator[int]:
        import torch

        first, *others = (dict(network.named_parameters()) for network in networks)
        own = {name: weight.detach().clone() for name, weight in first.items()}
        all_own: list[Mapping[str, Tensor]] = [own, *others]
        try:
            for draw in range(self.draws):
                generator = torch.Generator().manual_seed(seed + draw)
                shares = torch.randn(len(networks), generator=generator)
                for name, weight in first.items():
                    found = torch.stack([each[name].detach().float().cpu() for each in all_own])
                    weight.data.copy_(_drawn(found, shares, generator))
                yield 0
        finally:
            for name, weight in first.items():
                weight.data.copy_(own[name])


def _drawn(weights_K: "Tensor", shares_K: "Tensor", generator: "Generator") -> "Tensor":
    """Return a draw of one weight tensor from its K versions."""
    import torch

    mean = weights_K.mean(0)
    deviations_K = weights_K - mean
    diagonal = deviations_K.square().mean(0).sqrt() * torch.randn(mean.shape, generator=generator)
    low_rank = torch.tensordot(shares_K, deviations_K, 1) / (len(weights_K) - 1) ** 0.5
    drawn: Tensor = mean + (diagonal + low_rank) / 2**0.5
    return drawn
