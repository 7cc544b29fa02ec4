"""Rounds: how a student answers the calibration questions while it trains.

A round is a pass without gradient over all of them, divided among the processes. Whatever adapts to
it (`Adaptive`) keeps plain numbers, the same in every process, which each checkpoint contains.
Rounds follow from the step, so a resumed run has neither too many nor too few.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from firstkd.data.packing import batches_by_length, pack
from firstkd.data.prompts import Question
from firstkd.models.scoring import ResponseScorer
from firstkd.models.view import View
from firstkd.train.distributed import Ranks
from firstkd.train.engine import whole_weights


@dataclass(frozen=True)
class Rounds:
    questions: Sequence[Question]
    """Calibration questions with choices and a known right one."""
    batch_size: int
    batch_tokens: int

    def before(self, engine: Any, step: int, steps: int, ranks: Ranks) -> None:
        """Adapt whatever is due before a step, of `steps` in all. All processes must call it.

        With ZeRO 3 every process holds the whole weights meanwhile.
        """
        adaptive = engine.module.adaptive.values()
        due = [found for found in adaptive if is_due(step, steps, found.adaptive.rounds)]
        if not due:
            return
        right_E = torch.tensor([question.gold for question in self.questions])
        with whole_weights(engine):
            scores = {scorer: self._scores(scorer, ranks) for scorer in {f.scorer for f in due}}
        for found in due:
            found.adaptive.adapt(scores[found.scorer], right_E)

    @torch.no_grad()
    def _scores(self, scorer: ResponseScorer, ranks: Ranks) -> Tensor:
        """Return scores [E, C] in float64, computed as in training but without dropout."""
        device, mine = scorer.backbone.device, []
        batches = batches_by_length(self.questions, self.batch_size, self.batch_tokens)
        scorer.eval()
        for index in batches[ranks.rank :: ranks.world_size]:
            batch = pack(self.questions, index).to(device)
            mine.append((index, View(scorer, batch).choice_scores_BC.double().cpu()))
        scorer.train()
        num_choices = max(len(question.responses) for question in self.questions)
        shape = len(self.questions), num_choices
        scores_EC = torch.full(shape, -torch.inf, dtype=torch.float64)
        for index, found in (part for parts in ranks.gather(mine) for part in parts):
            scores_EC[index, : found.shape[1]] = found
        return scores_EC


def is_due(step: int, steps: int, rounds: int) -> bool:
    """Whether one of the evenly spaced rounds comes just before this step."""
    return rounds * step // steps != rounds * (step - 1) // steps
