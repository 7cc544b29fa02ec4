"""The bootstrap: how a number would vary if other questions had been drawn.

Samples are counts [S, E]: how often each of E decisions was drawn in each of S samples. So
whatever sorts or bins by confidence does so once, not once per sample, and whole groups (the
tokens of one text, the questions on one passage) are drawn like single questions.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.floating]
Counts = NDArray[np.float64]
Statistic = Callable[[Counts], Mapping[str, Floats]]
"""Maps counts [S, E] to metrics [S] by name."""

BLOCK = 2**22
"""Decisions drawn at a time, few enough to fit in memory."""
ROUNDING = 1e-12


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or −1 if the interval of a difference excludes 0, else 0."""
        return int(self.low > 0) - int(self.high < 0)

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


@dataclass(frozen=True)
class Resampled:
    """A statistic of the data, and of each bootstrap sample [S]."""

    value: float
    samples: Floats

    @property
    def bias(self) -> float:
        """The bootstrap's estimate of the bias: how far samples lie above the data's own value.

        0 if it is within three standard errors of the resampling itself, as a mean's is: a
        correction would be noise.
        """
        bias = float(self.samples.mean() - self.value)
        noise = float(self.samples.std()) / len(self.samples) ** 0.5
        return bias if abs(bias) > 3 * noise else 0.0

    def estimate(self, lowest: float = -np.inf, highest: float = np.inf) -> Estimate:
        """Return the percentile interval less the bias.

        (Efron and Tibshirani 1993, sec. 10.3.) A sample's ECE lies above its source's because of
        chance gaps in its bins, and a resample's lies above its sample's for the same reason: with
        312 questions and a calibrated model the mean ECE is 0.053 and the bootstrap's median 0.074.
        Uncorrected, the percentile interval is too high, and a difference's interval shifts against
        the better calibrated model. Of five corrections in simulations (312 and 1,200 questions,
        calibrated to very over-confident), this one covered the expected ECE of a test set of this
        size in 92 to 99 % of cases and always contained the value itself. The others (Efron's BC,
        the basic (reflected) interval and two more) covered it in 67 to 85 % if the model is
        calibrated. The sample's own ECE is still biased: only more questions change that.
        """
        low, high = np.percentile(self.samples, [2.5, 97.5]) - self.bias
        low, high = np.clip([low, high], lowest, highest)
        return Estimate(self.value, min(float(low), self.value), max(float(high), self.value))

    def risk_above(self, limit: float) -> float:
        """Return the share of samples that, less the bias, are above `limit`."""
        return float((self.samples - self.bias > limit + ROUNDING).mean())


@dataclass(frozen=True)
class Draws:
    """Which bootstrap samples to draw of E decisions, always the same for the same seed."""

    size: int
    samples: int
    seed: int
    group_of: NDArray[np.int64] | None = None
    """[E], numbered from 0 without gaps: decisions of one group are drawn together."""

    @classmethod
    def of(cls, size: int, samples: int, seed: int, groups: ArrayLike | None = None) -> Self:
        """Draw decisions, or whole groups if several share one; `groups` [E] names each one's."""
        if groups is None:
            return cls(size, samples, seed)
        found = cls.grouped(np.asarray(groups), samples, seed)
        assert found.group_of is not None
        is_alone = int(found.group_of.max()) + 1 == size
        return cls(size, samples, seed) if is_alone else found

    @classmethod
    def grouped(cls, groups: NDArray[np.generic], samples: int, seed: int) -> Self:
        """Draw whole groups; `groups` [E] names each decision's."""
        return cls(len(groups), samples, seed, np.unique(groups, return_inverse=True)[1])

    def __iter__(self) -> Iterator[Counts]:
        """Yield counts [S, E] in blocks of samples."""
        generator = np.random.default_rng(self.seed)
        groups = self.size if self.group_of is None else int(self.group_of.max()) + 1
        rows = max(1, BLOCK // self.size)
        for start in range(0, self.samples, rows):
            counts = _draw(generator, min(rows, self.samples - start), groups)
            yield counts if self.group_of is None else counts[:, self.group_of]


def _draw(generator: np.random.Generator, samples: int, groups: int) -> Counts:
    """[S, groups]: how often each group is drawn, in as many draws as there are groups."""
    chosen = generator.integers(groups, size=(samples, groups))
    chosen += np.arange(samples)[:, None] * groups
    counts = np.bincount(chosen.ravel(), minlength=samples * groups)
    return counts.astype(np.float64).reshape(samples, groups)


def resample(statistic: Statistic, draws: Draws) -> dict[str, Resampled]:
    """Return each of the statistic's numbers, for all decisions and for every sample."""
    observed = statistic(np.ones((1, draws.size)))
    drawn = [statistic(counts) for counts in draws]
    return {
        name: Resampled(float(value[0]), np.concatenate([found[name] for found in drawn]))
        for name, value in observed.items()
    }
