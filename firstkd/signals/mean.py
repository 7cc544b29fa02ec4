"""The signal `mean`: several teachers pooled, as the mean of their probabilities.

Probabilities and not logits, and a temperature is fitted after pooling (Rahaman and Thiery 2021,
arXiv 2007.08792): pooling makes a calibrated ensemble under-confident.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from firstkd.errors import ArtifactError
from firstkd.section import Name
from firstkd.signals.base import CombinedSignal, Signal
from firstkd.signals.choices import OfChoices

if TYPE_CHECKING:
    from firstkd.signals.store import Records


class Mean(OfChoices, CombinedSignal):
    kind: Literal["mean"]

    of: Annotated[list[Name], Field(min_length=2)]
    """The signals to pool, each of choices."""

    @property
    def signals(self) -> tuple[str, ...]:
        return tuple(self.of)

    def check(self, others: Mapping[str, Signal]) -> str | None:
        for name in self.of:
            if others[name].decides != self.decides:
                return (
                    f"of: {name!r} is of {others[name].decides}s; only signals of choices can be "
                    "pooled, since the top tokens of two models differ"
                )
        return None

    def combine(self, members: Sequence[Path]) -> "Records":
        import torch

        from firstkd.signals.store import Records, SignalStore

        stores = [SignalStore(folder) for folder in members]
        first = stores[0].whole()
        parts = [first.columns["logprob"].double()]
        for store in stores[1:]:
            if not torch.equal(store.keys, stores[0].keys):
                raise ArtifactError(
                    f"{store.folder} holds other examples than {stores[0].folder}; run its stage "
                    "again"
                )
            parts.append(store.whole().columns["logprob"].double())
        pooled = torch.stack(parts).exp().mean(0).log()
        return Records({"logprob": pooled.float()}, first.counts)
