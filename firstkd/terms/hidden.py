"""The term `hidden`: the student's hidden states against another model's, token by token."""

from typing import TYPE_CHECKING, Literal

from firstkd.data.prompts import Question
from firstkd.errors import ConfigError
from firstkd.signals.base import Pairs
from firstkd.terms.base import Pairing, Sum
from firstkd.terms.places import StatesTerm

if TYPE_CHECKING:
    from torch import Tensor, nn

    from firstkd.models.view import View
    from firstkd.signals.target import AnyTarget


class Hidden(StatesTerm):
    """Mean distance at matched places, summed over all tokens; counts tokens.

    `cosine` is 1 − cos(W s, t), half of PKD's loss (Sun et al. 2019, eq. 7), and blind to the few
    dimensions that are a thousand times as large as the others; `mse` is the mean of (W s − t)²
    over the dimensions (TinyBERT, Jiao et al. 2020, eq. 8). W is learned if widths differ.
    """

    kind: Literal["hidden"]
    distance: Literal["cosine", "mse"] = "cosine"
    projector: bool = True
    """Whether widths may differ; the matrix between them is trained, then thrown away."""

    def pairs(self, pairing: Pairing, key: str) -> Pairs:
        narrow, wide = pairing.widths
        if narrow != wide and not self.projector:
            raise ConfigError(
                f"{key}.projector: false, but the hidden states have {narrow} and {wide} numbers; "
                "set it to true"
            )
        return super().pairs(pairing, key)

    def modules(self, pairs: int, widths: tuple[int, int]) -> "nn.ModuleList":
        from torch import nn

        narrow, wide = widths
        needed = pairs if narrow != wide else 0
        return nn.ModuleList([nn.Linear(narrow, wide, bias=False) for _ in range(needed)])

    def count(self, question: Question) -> int:
        return len(question.prompt) + sum(map(len, question.responses))

    def __call__(self, view: "View", name: str, target: "AnyTarget | None") -> Sum:
        import torch

        projectors = view.modules[name]
        distances = []
        for number, (found_TH, wanted_TH) in enumerate(self.compared(view, target)):
            if len(projectors):
                found_TH = projectors[number](found_TH)
            distances.append(self._distance(found_TH, wanted_TH).sum())
        return Sum(torch.stack(distances).mean(), view.batch.tokens, {})

    def _distance(self, found_TH: "Tensor", wanted_TH: "Tensor") -> "Tensor":
        import torch
        import torch.nn.functional as F

        wide = torch.promote_types(found_TH.dtype, torch.float32)
        found_TH, wanted_TH = found_TH.to(wide), wanted_TH.to(wide)
        if self.distance == "cosine":
            return 1 - F.cosine_similarity(found_TH, wanted_TH, dim=-1)
        return (found_TH - wanted_TH).square().mean(-1)
