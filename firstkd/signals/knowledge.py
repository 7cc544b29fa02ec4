"""Decisions: what a model thinks of some candidates, and of everything else."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Knowledge:
    """R decisions with K candidates each, padded with log-probability −inf."""

    top_ids: Tensor
    """[R, K] token ids or choice indices."""
    top_logprobs: Tensor
    """[R, K] natural logarithms of the teacher's probabilities."""
    log_tail_mass: Tensor
    """[R] natural logarithm of the probability of everything that is not a candidate."""
    gold_logprob: Tensor
    """[R] natural logarithm of the probability of the right candidate or token; NaN if unknown."""
    tail_bends: Tensor
    """[R, J] how the tail behaves at other temperatures (firstkd/signals/tail.py); J is often 0."""
    vocabulary_size: int
    """Number of tokens, or of choices: candidates and tail together."""

    @classmethod
    def of_choices(cls, logprobs_RK: Tensor, gold_R: Tensor | None = None) -> Self:
        """Return decisions between choices, −inf where there is none; `gold_R`: the right ones."""
        gold_logprob = torch.full((len(logprobs_RK),), torch.nan)
        if gold_R is not None:
            gold_logprob = logprobs_RK.gather(-1, gold_R[:, None])[:, 0]
        num_choices = logprobs_RK.shape[1]
        return cls(
            top_ids=torch.arange(num_choices).expand(len(logprobs_RK), -1),
            top_logprobs=logprobs_RK,
            log_tail_mass=torch.full((len(logprobs_RK),), -torch.inf),
            gold_logprob=gold_logprob,
            tail_bends=torch.empty(len(logprobs_RK), 0),
            vocabulary_size=num_choices,
        )

    @property
    def tail_mass(self) -> Tensor:
        """[R] probability of everything that is not a candidate."""
        return self.log_tail_mass.exp()

    def is_right(self, gold_ids: Tensor) -> Tensor:
        """[R, K], True at the candidate that `gold_ids` [R] names, if it is among them."""
        return (self.top_ids == gold_ids[:, None]) & torch.isfinite(self.top_logprobs)

    def __len__(self) -> int:
        return len(self.log_tail_mass)

    def __getitem__(self, rows: Tensor) -> Self:
        return replace(self, **{name: getattr(self, name)[rows] for name in FIELDS})

    def cpu(self) -> Self:
        return replace(self, **{name: getattr(self, name).cpu() for name in FIELDS})

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        tensors: dict[str, Any] = {
            name: torch.cat([getattr(part, name) for part in parts]) for name in FIELDS
        }
        return replace(parts[0], **tensors)


FIELDS = tuple(field.name for field in fields(Knowledge) if field.name != "vocabulary_size")
"""Names of the fields that are tensors, with one row per decision."""
