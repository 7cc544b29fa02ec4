"""Terms on hidden states: the places at which the student's are compared with another model's."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from firstkd.errors import ConfigError
from firstkd.signals.base import Pairs, Signal
from firstkd.terms.base import Pairing, SignalTerm

if TYPE_CHECKING:
    from torch import Tensor

    from firstkd.models.view import View
    from firstkd.signals.target import AnyTarget

Place = Annotated[int, Field(ge=0)]


def _form(layers: Any) -> str:
    return "pairs" if isinstance(layers, list | tuple) else "name"


LayerMap = Annotated[
    Annotated[Literal["last", "kept", "uniform"], Tag("name")]
    | Annotated[tuple[tuple[Place, Place], ...], Field(min_length=1), Tag("pairs")],
    Discriminator(_form),
]


def matched(
    layers: LayerMap, pairing: Pairing, key: str, of: Literal["layers", "places"]
) -> list[tuple[int, int]]:
    """Return which layers, or places, of the student and of the other model are compared.

    A layer has the number of the place before it. Raises ConfigError, with `key` before the
    setting's name, if there are none.
    """
    ours, theirs = pairing.layers
    shift = 1 if of == "layers" else 0
    if layers == "last":
        return [(ours - shift, theirs - shift)]
    if layers == "uniform":
        behind = range(1, ours + 1)
        # the nearest, the later one of two that are as near, and never before the first layer
        nearest = [max(1, (2 * place * theirs + ours) // (2 * ours)) for place in behind]
        return [(p - shift, n - shift) for p, n in zip(behind, nearest, strict=True)]
    if layers == "kept":
        if pairing.kept is None:
            raise ConfigError(
                f"{key}.layers: kept, but the student was not pruned from the other model "
                f"or from its start; set uniform, last or pairs of {of}"
            )
        kept = [*enumerate(pairing.kept)]
        return kept if of == "layers" else [*kept[1:], (ours, theirs)]
    for pair in layers:
        if pair[0] > ours - shift or pair[1] > theirs - shift:
            raise ConfigError(
                f"{key}.layers: there is no pair {list(pair)}; the student's {of} go from 0 "
                f"to {ours - shift}, the other's to {theirs - shift}"
            )
    return [*layers]


class StatesTerm(SignalTerm):
    """Place i is the input of layer i, counted from 0; the last place is the output of the final
    norm."""

    decides: ClassVar[str] = "state"
    same_tokens: ClassVar[bool] = True

    layers: LayerMap = "last"
    """`last`: after the final norm. `kept`: for a student that has lost layers, also the input of
    each layer but the first, matched to the same layer's in the other model. `uniform`: after each
    layer, at the same share of the depth. Or pairs of places, the student's and the other's."""

    def misfit(self, signal: Signal) -> str | None:
        if not signal.is_live and self.layers != "last":
            return (
                f"layers: signals.{self.from_} is stored and holds only the output of the "
                "final norm; set layers: last, or live: true there"
            )
        return super().misfit(signal)

    def pairs(self, pairing: Pairing, key: str) -> Pairs:
        return matched(self.layers, pairing, key, "places")

    def compared(self, view: "View", target: "AnyTarget | None") -> "list[tuple[Tensor, Tensor]]":
        """Return, for each pair of places, the student's states [T, H] and those to match."""
        from firstkd.signals.target import States

        assert isinstance(target, States)
        return [(view.states(place), wanted) for place, wanted in target.pairs]
