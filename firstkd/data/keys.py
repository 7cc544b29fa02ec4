"""Texts as 64-bit keys, many millions of which fit in memory."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.int64]
Bools = NDArray[np.bool_]


def keys_of(texts: Iterable[str]) -> Keys:
    """Return a key for each text; the odds of a clash among five million are one in a million."""
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(digests), "<i8")


@dataclass(frozen=True)
class KeySet:
    """Distinct keys in order, and how often each occurred."""

    keys: Keys
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, keys: Keys) -> "KeySet":
        return cls(*np.unique(keys, return_counts=True))

    def __len__(self) -> int:
        return len(self.keys)

    def count(self, keys: Keys) -> NDArray[np.int64]:
        """Return how often each of these keys occurred."""
        if not len(self):
            return np.zeros(len(keys), np.int64)
        places = np.searchsorted(self.keys, keys) % len(self)
        return np.where(self.keys[places] == keys, self.counts[places], 0)
