"""Evidence that values are no longer like those of a reference sample, valid at any time.

A conformal test martingale (Vovk, Nouretdinov and Gammerman 2003, "Testing exchangeability
on-line"): while all values are exchangeable, the rank of each new one among those before it, ties
broken at random, is uniform and independent of the earlier ranks. So betting on where the next
rank falls gains nothing on average, and by Ville's inequality a capital that starts at 1 ever
exceeds c with probability at most 1/c, however large the reference and however often one looks.

The bets are a histogram of the ranks so far (Fedorova et al. 2012, "Plug-in martingales"). Since a
change may come late, the capital is shared among bettors, each starting a stride after the last.
"""

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from random import Random

BINS = 10
"""Bins in a bettor's histogram; each starts with a count of one."""
BETTORS = 8


class Exchangeability:
    """Compares up to `horizon` values with a reference."""

    def __init__(self, reference: Sequence[float], horizon: int, seed: int) -> None:
        self._values, self._random = sorted(reference), Random(seed)
        self._stride, self._seen = max(1, horizon // BETTORS), 0
        self._counts: list[list[int]] = []
        self._logs: list[float] = []

    def add(self, value: float) -> None:
        if self._seen % self._stride == 0 and len(self._logs) < BETTORS:
            self._counts.append([1] * BINS)
            self._logs.append(0.0)
        self._seen += 1
        below, upto = bisect_left(self._values, value), bisect_right(self._values, value)
        rank = (below + self._random.random() * (upto - below + 1)) / (len(self._values) + 1)
        place = min(int(rank * BINS), BINS - 1)
        for bettor, counts in enumerate(self._counts):
            self._logs[bettor] += math.log(BINS * counts[place] / sum(counts))
            counts[place] += 1
        insort(self._values, value)

    @property
    def log_evidence(self) -> float:
        """The logarithm of the capital; a bettor that has not started yet still has 1."""
        logs = [*self._logs, *([0.0] * (BETTORS - len(self._logs)))]
        highest = max(logs)
        return highest + math.log(sum(math.exp(each - highest) for each in logs) / BETTORS)
