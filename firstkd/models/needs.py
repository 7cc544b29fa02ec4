"""What a forward pass must compute. Does not import torch, since settings are read without it."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Self


class Projection(NamedTuple):
    """Queries, keys or values of a layer's attention, before rotary positions are applied."""

    layer: int
    of: Literal["q", "k", "v"]


Place = int | Projection
"""Where each token's activations are read: i is the input of layer i, and the last place the
final norm's output."""


@dataclass(frozen=True)
class Needs:
    """What some terms or signals need from one forward pass; their union is computed once."""

    choices: bool = False
    """The scores of all of a question's choices, not only of its right response."""
    states: bool = False
    """The final norm's output at every token, not only at the supervised ones."""

    def __or__(self, other: "Needs") -> Self:
        return type(self)(self.choices or other.choices, self.states or other.states)
