"""Laplace: variations of the last layer that the training questions do not rule out."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from firstkd.ensembles.base import Draws, Ensemble
from firstkd.section import Name

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from firstkd.data.prompts import Question


class Laplace(Ensemble):
    """Gains g of the last hidden state's H dimensions, drawn from N(1, (GGN + τ I)⁻¹).

    A Laplace approximation of a subnetwork (Daxberger et al. 2021, arXiv 2010.14689) after the
    last layer, in which the logits are linear; the head itself has V · H weights, tied to the
    embedding. GGN = Σ over questions of Jᵀ (diag p − p pᵀ) J, with J the derivatives [C, H] of the
    choices' scores. The prior is N(0, 1/τ), with the τ that maximises the evidence (MacKay 1992;
    Immer et al. 2021).
    """

    kind: Literal["laplace"]
    is_fitted: ClassVar[bool] = True
    of: Name
    draws: Draws = 20

    @property
    def models(self) -> tuple[str, ...]:
        return (self.of,)

    def fit(
        self,
        networks: "Sequence[PreTrainedModel]",
        questions: "Sequence[Question]",
        batch_size: int,
    ) -> "Tensor":
        """Return a root R [H, H] of the covariance: R Rᵀ = (GGN + τ I)⁻¹."""
        from firstkd.ensembles.curvature import curvature, precision_of_most_evidence

        values_H, vectors_HH = curvature(networks[0], questions, batch_size)
        precision = precision_of_most_evidence(values_H)
        return vectors_HH * (values_H + precision).rsqrt()

    def passes(
        self, networks: "Sequence[PreTrainedModel]", fitted: "Tensor | None", seed: int
    ) -> Iterator[int]:
        import torch

        assert fitted is not None
        gains: list[Tensor] = []

        def scaled(_: Any, __: Any, output: Any) -> Any:
            hidden = output.last_hidden_state
            output.last_hidden_state = hidden * gains[-1].to(hidden.device)
            return output

        hook = networks[0].base_model.register_forward_hook(scaled)
        try:
            for draw in range(self.draws):
                generator = torch.Generator().manual_seed(seed + draw)
                normal_H = torch.randn(len(fitted), dtype=fitted.dtype, generator=generator)
                gains.append((1 + fitted @ normal_H).float())
                yield 0
        finally:
            hook.remove()
