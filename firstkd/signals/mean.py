"""The signal `mean`: several teachers pooled, as the mean of their probabilities.

Probabilities and not logits, and a temperature is fitted after pooling (Rahaman and Thiery 2021,
arXiv 2007.08792): pooling makes a calibrated ensemble under-confident.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from firstkd.signals.choices import CombinedChoices

if TYPE_CHECKING:
    from firstkd.signals.store import Records, SignalStore


class Mean(CombinedChoices):
    kind: Literal["mean"]

    def combined(self, stores: "Sequence[SignalStore]") -> "Records":
        import torch

        from firstkd.signals.store import Records

        whole = [store.whole() for store in stores]
        parts = torch.stack([found.columns["logprob"].double() for found in whole])
        return Records({"logprob": parts.exp().mean(0).log().float()}, whole[0].counts)
