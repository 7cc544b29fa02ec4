"""Columns of a signal's records: their types, and how ragged ones are laid out on disk."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

KEPT = "top_kept"
"""The column that says how many candidates each record has, if that varies."""
TOKEN = "token"
"""The column of token ids of an answer that a model has written itself."""


@dataclass(frozen=True)
class Column:
    """One number, or `width` numbers, per record."""

    dtype: torch.dtype
    width: int | None = None
    share: int = 0
    """If not 0, the number of candidates varies between records, and this many of them share one
    number: the disk holds only each record's own numbers, record after record."""

    def to_json(self) -> dict[str, Any]:
        share = {"share": self.share} if self.share else {}
        return {"dtype": str(self.dtype).removeprefix("torch."), "width": self.width, **share}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(getattr(torch, value["dtype"]), value["width"], value.get("share", 0))

    def to_disk(self, values: Tensor, kept_R: Tensor) -> Tensor:
        """Return the numbers of each record's own candidates."""
        return values[self._is_own(kept_R)] if self.share else values

    def from_disk(self, values: Tensor, kept_R: Tensor, rows_S: Tensor) -> Tensor:
        """Return [S] or [S, width] for these records, padded with −inf, or with 0 for integers."""
        if not self.share:
            return values[rows_S]
        assert self.width is not None
        padding = -torch.inf if self.dtype.is_floating_point else 0
        padded = torch.full((len(rows_S), self.width), padding, dtype=self.dtype)
        # torch 2.13 cannot assign to masked places of uint16
        bits = torch.int16 if self.dtype == torch.uint16 else self.dtype
        own, _ = rows_of(self._needed(kept_R), rows_S)
        padded.view(bits)[self._is_own(kept_R[rows_S])] = values.view(bits)[own]
        return padded

    def _needed(self, kept_R: Tensor) -> Tensor:
        return (kept_R.long() + self.share - 1) // self.share

    def _is_own(self, kept_R: Tensor) -> Tensor:
        assert self.width is not None
        return torch.arange(self.width) < self._needed(kept_R)[:, None]


def rows_of(counts: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows that belong to the examples `index`, and how many each of them has."""
    ends = counts.long().cumsum(0)
    chosen = counts.long()[index]
    first = chosen.cumsum(0) - chosen
    total = int(chosen.sum())
    offsets = (ends[index] - chosen - first).repeat_interleave(chosen, output_size=total)
    return torch.arange(total) + offsets, chosen


Layout = Mapping[str, Column]
