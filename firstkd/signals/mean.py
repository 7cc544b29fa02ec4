"""The signal `mean`: several teachers pooled, as the mean of their probabilities.

Probabilities and not logits, and a temperature is fitted after pooling (Rahaman and Thiery 2021,
arXiv 2007.08792): pooling makes a calibrated ensemble under-confident.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from firstkd.section import Name
from firstkd.signals.base import CombinedSignal, Signal
from firstkd.signals.choices import OfChoices

if TYPE_CHECKING:
    from firstkd.models.settings import ModelSettings
    from firstkd.signals.store import Records, SignalStore


class Mean(OfChoices, CombinedSignal):
    kind: Literal["mean"]

    of: Annotated[list[Name], Field(min_length=2)]
    """The signals to pool, each of choices."""

    @property
    def signals(self) -> tuple[str, ...]:
        return tuple(self.of)

    def check(
        self, signals: Mapping[str, Signal], models: "Mapping[str, ModelSettings]"
    ) -> str | None:
        return self.not_of_choices(signals)

    def combined(self, stores: "Sequence[SignalStore]") -> "Records":
        import torch

        from firstkd.signals.store import Records

        whole = [store.whole() for store in stores]
        parts = torch.stack([found.columns["logprob"].double() for found in whole])
        return Records({"logprob": parts.exp().mean(0).log().float()}, whole[0].counts)
