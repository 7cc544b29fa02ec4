"""Settings of a bandit, which picks one of several terms to learn from at a time."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from firstkd.section import Name, Positive, Section, listed

if TYPE_CHECKING:
    from firstkd.terms.base import Term


class Bandit(Section):
    """Only one of the terms in `arms` counts in each round (firstkd/terms/exp3.py).

    The bandit learns which teacher, or which selection of tokens, helps.
    """

    arms: Annotated[tuple[Name, ...], Field(min_length=2)]
    """Names of terms in `learn`."""
    rounds: Positive = 20
    """How often per training the calibration questions are answered and a term is drawn."""

    def misfits(self, learn: "Mapping[str, Term]", peers: Sequence[str]) -> Iterator[str]:
        """Yield each reason why it cannot choose."""
        if unknown := {*self.arms} - learn.keys():
            yield f"arms: {listed(unknown)} is not a term of learn; allowed: {listed({*learn})}"
        if len({*self.arms}) < len(self.arms):
            yield f"arms: {', '.join(self.arms)} names a term twice; name each once"
        if len(peers) > 1:
            yield (
                f"{', '.join(peers)} learn from one another, so a change in one's answers may come "
                "from the other's terms; remove it"
            )
