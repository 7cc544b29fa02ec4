"""Terms on hidden states: the places at which the student's are compared with another model's."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from firstkd.errors import ConfigError
from firstkd.signals.base import Pairs, Signal
from firstkd.terms.base import Pairing, SignalTerm

Place = Annotated[int, Field(ge=0)]


def _form(layers: Any) -> str:
    return "pairs" if isinstance(layers, list | tuple) else "name"


LayerMap = Annotated[
    Annotated[Literal["last", "kept", "uniform"], Tag("name")]
    | Annotated[tuple[tuple[Place, Place], ...], Field(min_length=1), Tag("pairs")],
    Discriminator(_form),
]


class StatesTerm(SignalTerm):
    """Place i is what enters layer i, counted from 0, and the last place what leaves the final
    norm."""

    decides: ClassVar[str] = "state"

    layers: LayerMap = "last"
    """`last`: behind the final norm. `kept`: for a student that has lost layers, also where each
    layer but the first begins, which the other model has, too. `uniform`: behind each layer, at
    the same share of the depth. Or pairs of places, the student's and the other's."""

    def misfit(self, signal: Signal) -> str | None:
        if not signal.is_live and self.layers != "last":
            return (
                f"layers: signals.{self.from_} is stored and holds what leaves the final norm "
                "alone; set layers: last, or live: true there"
            )
        return super().misfit(signal)

    def pairs(self, pairing: Pairing, key: str) -> Pairs:
        ours, theirs = end = pairing.layers
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
