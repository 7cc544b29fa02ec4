"""What a version's calibration questions were like, kept with the version."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Self

from firstkd.data.examples import Example

BELOW = "share below the threshold"
LARGEST = 2000
"""Maximum calibration questions in a reference; the first ones are a fair sample."""


@dataclass(frozen=True)
class Reference:
    """What a version's calibration questions were like."""

    confidence: list[float]
    """The version's, calibrated."""
    characters: list[int]
    """Length of each prompt."""

    @classmethod
    def of(cls, examples: Iterable[Example], confidence: Sequence[float]) -> Self:
        lengths = [len(example.prompt) for example in islice(examples, LARGEST)]
        return cls([float(each) for each in confidence[:LARGEST]], lengths)

    def values(self, abstain_below: float | None) -> dict[str, list[float]]:
        """Return the samples to compare with, under the threshold in force."""
        found = {"confidence": self.confidence, "prompt length": [*map(float, self.characters)]}
        if abstain_below is not None:
            found[BELOW] = [float(c < abstain_below) for c in self.confidence]
        return found
