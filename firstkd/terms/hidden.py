"""The term `hidden`: the student's hidden states against another model's, token by token."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from firstkd.data.prompts import Question
from firstkd.errors import ConfigError
from firstkd.signals.base import Pairs
from firstkd.terms.base import Pairing, SignalTerm, Sum

if TYPE_CHECKING:
    from torch import Tensor, nn

    from firstkd.models.view import View
    from firstkd.signals.target import States, Target

Place = Annotated[int, Field(ge=0)]


def _form(layers: Any) -> str:
    return "pairs" if isinstance(layers, list | tuple) else "name"


LayerMap = Annotated[
    Annotated[Literal["last", "kept", "uniform"], Tag("name")]
    | Annotated[tuple[tuple[Place, Place], ...], Field(min_length=1), Tag("pairs")],
    Discriminator(_form),
]


class Hidden(SignalTerm):
    """Mean distance at matched places, summed over all tokens; counts tokens.

    Place i is what enters layer i, counted from 0, and the last place what leaves the final norm.
    `cosine` is 1 − cos(W s, t), half of PKD's loss (Sun et al. 2019, eq. 7), and blind to the few
    dimensions that are a thousand times as large as the others; `mse` the mean of (W s − t)² over
    the dimensions (TinyBERT, Jiao et al. 2020, eq. 8). W is learned where widths differ.
    """

    kind: Literal["hidden"]
    decides: ClassVar[str] = "state"

    layers: LayerMap = "last"
    """`last`: behind the final norm. `kept`: for a student that has lost layers, also where each
    layer but the first begins, which the other model has, too. `uniform`: behind each layer, at
    the same share of the depth. Or pairs of places, the student's and the other's."""
    distance: Literal["cosine", "mse"] = "cosine"
    projector: bool = True
    """Whether widths may differ, with a matrix between them that is trained and thrown away."""

    def pairs(self, pairing: Pairing, key: str) -> Pairs:
        (ours, theirs), (narrow, wide) = pairing.layers, pairing.widths
        if narrow != wide and not self.projector:
            raise ConfigError(
                f"{key}.projector: false, but hidden states of {narrow} and of {wide} numbers are "
                "to be compared; set it to true"
            )
        end = (ours, theirs)
        if self.layers == "last":
            return [end]
        if self.layers == "uniform":
            return [(place, round(place * theirs / ours)) for place in range(1, ours + 1)]
        if self.layers == "kept":
            if pairing.kept is None:
                raise ConfigError(
                    f"{key}.layers: kept, but the student is not what pruning has left of the "
                    "other model or its start; set uniform, last or pairs of places"
                )
            return [*((place, pairing.kept[place]) for place in range(1, ours)), end]
        for pair in self.layers:
            if pair[0] > ours or pair[1] > theirs:
                raise ConfigError(
                    f"{key}.layers: there is no pair {list(pair)}; the student's places go from 0 "
                    f"to {ours}, the other's to {theirs}"
                )
        return self.layers

    def modules(self, pairs: int, widths: tuple[int, int]) -> "nn.ModuleList":
        from torch import nn

        narrow, wide = widths
        needed = pairs if narrow != wide else 0
        return nn.ModuleList([nn.Linear(narrow, wide, bias=False) for _ in range(needed)])

    def count(self, question: Question) -> int:
        return len(question.prompt) + sum(map(len, question.responses))

    def __call__(self, view: "View", name: str, target: "Target | States | None") -> Sum:
        import torch

        from firstkd.signals.target import States

        assert isinstance(target, States)
        projectors = view.modules[name]
        distances = []
        for number, (place, wanted_TH) in enumerate(target.pairs):
            found_TH = view.states(place)
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
