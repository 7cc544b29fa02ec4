"""What is asked of a model's forward pass. Free of torch, since settings are read without it."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Self


class Projection(NamedTuple):
    """Queries, keys or values of a layer's attention, before positions are rotated into them."""

    layer: int
    of: Literal["q", "k", "v"]


Place = int | Projection
"""Where numbers of each token are seen: i is what enters layer i, and the last place what leaves
the final norm."""


@dataclass(frozen=True)
class Needs:
    """What some terms or signals ask of one forward pass; their union is computed once."""

    choices: bool = False
    """The scores of all of a question's choices, not of its right response alone."""
    states: bool = False
    """What leaves the final norm at each token, not at the supervised ones alone."""

    def __or__(self, other: "Needs") -> Self:
        return type(self)(self.choices or other.choices, self.states or other.states)
