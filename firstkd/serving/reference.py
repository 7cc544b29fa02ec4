"""What the questions that a version was calibrated on were like: it goes with the version."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Self

from firstkd.data.examples import Example

BELOW = "share below the threshold"
LARGEST = 2000
"""Calibration questions that a version keeps as its reference; the first are a fair sample."""


@dataclass(frozen=True)
class Reference:
    """What a version's calibration questions were like."""

    confidence: list[float]
    """Calibrated, of the version."""
    characters: list[int]
    """Length of the prompt."""

    @classmethod
    def of(cls, examples: Iterable[Example], confidence: Sequence[float]) -> Self:
        lengths = [len(example.prompt) for example in islice(examples, LARGEST)]
        return cls([float(each) for each in confidence[:LARGEST]], lengths)

    def values(self, abstain_below: float | None) -> dict[str, list[float]]:
        """Return the samples to compare with, under the threshold that is in force."""
        found = {"confidence": self.confidence, "prompt length": [*map(float, self.characters)]}
        if abstain_below is not None:
            found[BELOW] = [float(c < abstain_below) for c in self.confidence]
        return found
