"""The signal `mean`: several teachers pooled by averaging their probabilities.

Probabilities, not logits, are averaged, and a temperature is fitted after pooling (Rahaman and
Thiery 2021, arXiv 2007.08792): pooling makes a calibrated ensemble under-confident.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from firstkd.signals.choices import CombinedChoices

if TYPE_CHECKING:
    from torch import Tensor

    from firstkd.recalibration.base import Recalibration
    from firstkd.signals.store import Records


class Mean(CombinedChoices):
    kind: Literal["mean"]

    weights: Literal["uniform", "confidence"] = "uniform"
    """`confidence`: on each question, a member's weight is exp(−H), with H the entropy in nats of
    its distribution at its own temperature. Without temperatures the most over-confident
    member would dominate."""

    @property
    def tempers(self) -> bool:
        return self.weights == "confidence"

    def tempered(self, records: "Records", temperature: "Recalibration") -> "Records":
        import torch

        from firstkd.signals.store import Records

        decisions = self.decisions(records, {})
        choices_R = records.counts[records.counts > 0, None]
        exists_RK = torch.arange(decisions.top_ids.shape[1]) < choices_R
        probabilities_RK = temperature.apply(decisions)
        return Records({"logprob": probabilities_RK[exists_RK].log()}, records.counts)

    def combined(self, keys: "Tensor", members: "Sequence[Records]") -> "Records":
        import torch

        from firstkd.signals.store import Records

        parts_MR = torch.stack([found.columns["logprob"].double().exp() for found in members])
        weights_MR = torch.ones_like(parts_MR)
        if self.weights == "confidence":
            example_R, examples = members[0].example_R, len(members[0].counts)
            entropy_ME = parts_MR.new_zeros(len(members), examples)
            entropy_ME.index_add_(1, example_R, -torch.xlogy(parts_MR, parts_MR))
            weights_MR = (-entropy_ME).exp()[:, example_R]
        pooled_R = (weights_MR * parts_MR).sum(0) / weights_MR.sum(0)
        return Records({"logprob": pooled_R.log().float()}, members[0].counts)
