"""MC dropout: one model, with random activations dropped in each pass."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from firstkd.ensembles.base import Draws, Ensemble
from firstkd.section import Name

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Dropout(Ensemble):
    """Dropout before every weight matrix of the layers (Gal and Ghahramani 2016, sec. 3).

    Today's models are trained without it, so it is only added afterwards (Loquercio et al. 2020):
    keep `rate` small.
    """

    kind: Literal["dropout"]
    of: Name
    rate: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the activations that are dropped; the others are scaled up to compensate."""
    draws: Draws = 10

    @property
    def models(self) -> tuple[str, ...]:
        return (self.of,)

    def passes(
        self, networks: "Sequence[PreTrainedModel]", fitted: "Tensor | None", seed: int
    ) -> Iterator[int]:
        import torch
        from transformers.pytorch_utils import Conv1D

        from firstkd.models.layers import decoder_layers

        def drop(_: Any, given: tuple["Tensor", ...]) -> tuple["Tensor", ...]:
            return (torch.nn.functional.dropout(given[0], self.rate), *given[1:])

        matrices = [
            module
            for module in decoder_layers(networks[0]).modules()
            if isinstance(module, torch.nn.Linear | Conv1D)
        ]
        hooks = [module.register_forward_pre_hook(drop) for module in matrices]
        try:
            for draw in range(self.draws):
                with torch.random.fork_rng():
                    torch.manual_seed(seed + draw)
                    yield 0
        finally:
            for hook in hooks:
                hook.remove()
