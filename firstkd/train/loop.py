"""One training loop for teacher and student, under DeepSpeed ZeRO, in one process or many.

The loop counts optimizer steps. Each takes `micro_batches_per_step` micro-batches from a plan that
the seed fixes in advance, and divides them among the processes: how many there are decides who
computes what, not what is learned. The learning rate and the random numbers follow from the step,
so a checkpoint is all that resuming needs.
"""

import logging
import signal
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from firstkd.data.packing import pack, packed_length
from firstkd.data.prompts import Question
from firstkd.memory import memory_explained
from firstkd.train.checkpoints import Checkpoints
from firstkd.train.curve import (
    SPEEDS,
    MicroBatchResult,
    check_finite,
    per_unit,
    result_of,
    shown_live,
)
from firstkd.train.distributed import Ranks, join_ranks
from firstkd.train.engine import end_engine, make_engine, whole_weights
from firstkd.train.groups import set_learning_rate
from firstkd.train.plan import number_of_steps
from firstkd.train.player import Player, Players
from firstkd.train.schedule import learning_rate_at
from firstkd.train.settings import MachineSettings, TrainingSettings
from firstkd.train.stopping import stopping

if TYPE_CHECKING:
    from firstkd.open_text.on_policy import OwnText
    from firstkd.train.rounds import Rounds

log = logging.getLogger(__name__)

REMEDY = (
    "lower micro_batch_size or micro_batch_tokens and raise micro_batches_per_step, or set "
    "gradient_checkpointing, a higher zero_stage or cpu_offload under machine"
)
"""What to do when memory runs out."""


def train(
    player: Player | Players,
    questions: Sequence[Question],
    plan: Sequence[Sequence[int]],
    settings: TrainingSettings,
    machine: MachineSettings,
    live_curve: Path,
    checkpoints: Path | None = None,
    own_text: "OwnText | None" = None,
    rounds: "Rounds | None" = None,
) -> list[dict[str, float]]:
    """Train the player's model, or the players' models, in place and return the curve: step, loss,
    learning rate, gradient norm, each term's loss by name, and the terms' measures.

    `plan` lists every micro-batch in order, as indices of questions (`training_plan`). With ZeRO 3
    only the first process has the whole weights afterwards. `own_text` writes the student's own
    responses, if it learns on them, and `rounds` asks the calibration questions, if anything adapts
    to them.

    With a folder for `checkpoints`, training resumes from the newest one there and saves one every
    `checkpoint_steps` steps; at SIGTERM it finishes the step, saves and exits.

    The curve, with speeds, is written to `live_curve` as it grows, one JSON object per line.
    Raises TrainingDivergedError at the first step whose loss or gradient is not finite, and
    OutOfMemoryError.
    """
    ranks = join_ranks()
    steps = number_of_steps(len(plan), settings, ranks.world_size)
    seed = torch.initial_seed()
    saver = Checkpoints(checkpoints, ranks) if checkpoints else None
    engine, done, curve = _begin(player, settings, machine, ranks, saver)
    if done:
        log.info("resuming after step %d of %d", done, steps)
    of_plan = questions, plan, settings, ranks, steps, seed
    training = _Training(engine, player, *of_plan, own_text, rounds)
    interval = machine.checkpoint_steps or steps + 1
    with shown_live(live_curve, curve, steps, ranks) as show, stopping(bool(saver), ranks) as asked:
        for step in range(done, steps):
            curve.append(training.point(step))
            show(curve[-1])
            if saver:
                _save(saver, engine, curve, interval, steps, any(ranks.gather(asked.is_set())))
    end_engine(engine, ranks)
    return [{k: v for k, v in point.items() if k not in SPEEDS} for point in curve]


def _begin(
    player: Player | Players,
    settings: TrainingSettings,
    machine: MachineSettings,
    ranks: Ranks,
    saver: Checkpoints | None,
) -> tuple[Any, int, list[dict[str, float]]]:
    """Return an engine, the steps it has made and their curve, as in the newest checkpoint."""
    saved = saver.newest() if saver else None
    if saved:
        saved.load_weights(player)
    with memory_explained("while setting up the optimizer", REMEDY):
        engine = make_engine(player, settings, machine, ranks)
    if saved is None:
        return engine, 0, []
    saved.load_optimizer(engine)
    return engine, saved.step, saved.points


def _save(
    saver: Checkpoints,
    engine: Any,
    curve: list[dict[str, float]],
    interval: int,
    steps: int,
    stop: bool,
) -> None:
    """Save a checkpoint if one is due; to `stop`, save one in any case and exit."""
    done = len(curve)
    if stop or done % interval == 0:
        saver.save(engine, done, curve)
    if stop:
        log.warning("stopped after step %d of %d; checkpoint saved", done, steps)
        sys.exit(128 + signal.SIGTERM)


@dataclass(frozen=True)
class _Training:
    """What every training step works with."""

    engine: Any
    player: Player | Players
    questions: Sequence[Question]
    plan: Sequence[Sequence[int]]
    settings: TrainingSettings
    ranks: Ranks
    steps: int
    seed: int
    own_text: "OwnText | None"
    rounds: "Rounds | None"

    def point(self, step: int) -> dict[str, float]:
        """Make an optimizer step and return its point on the curve, with speeds."""
        started = time.monotonic()
        if self.rounds:
            self.rounds.before(self.engine, step, self.steps, self.ranks)
        weights = self.player.weights(step / self.steps)
        learning_rate = learning_rate_at(self.settings, step, self.steps)
        set_learning_rate(self.engine.optimizer, learning_rate)
        first = step * self.settings.micro_batches_per_step
        indices = self.plan[first : first + self.settings.micro_batches_per_step]
        results = self._step(indices, first, step / self.steps)
        losses = per_unit(result.losses for result in results)
        value = sum(weight * losses[name] for name, weight in weights.items())
        norm = float(self.engine.get_global_grad_norm())
        ids = [self.questions[i].id for index in indices for i in index]
        check_finite(value, norm, step, learning_rate, ids)
        tokens = sum(result.tokens for result in results)
        return {
            "step": step + 1,
            "loss": value,
            "learning_rate": learning_rate,
            "gradient_norm": norm,
            "loss_scale": float(self.engine.loss_scale()),
            **losses,
            **per_unit(result.measures for result in results),
            **self.player.shown,
            "step_tokens": tokens,
            "tokens_per_second": tokens / (time.monotonic() - started),
        }

    def _step(
        self, indices: Sequence[Sequence[int]], first: int, progress: float
    ) -> list[MicroBatchResult]:
        """Make one optimizer step on the micro-batches `indices`, the plan's from `first` on.

        Each term's sum is divided by its count over the whole step, so the step treats its
        micro-batches as one batch, however they are split. Returns the results of all processes.
        """
        turns = range(self.ranks.rank, len(indices), self.ranks.world_size)
        # write all texts first, since each gradient is divided by counts over the whole step
        with self._writing(indices, first):
            asked = {turn: self._asked(indices[turn], first + turn) for turn in turns}
        counts = self._counts(asked.values())
        mine = []
        for turn, questions in asked.items():
            # random numbers (dropout) depend on the micro-batch, not on who computes it or when
            torch.manual_seed(_seed_of(self.seed, first + turn))
            mine.append(self._micro_batch(questions, counts, progress, len(indices)))
        return [result for turn in zip(*self.ranks.gather(mine), strict=True) for result in turn]

    def _writing(self, indices: Sequence[Sequence[int]], first: int) -> AbstractContextManager[Any]:
        """Return a context with the whole weights if any process writes text in this step."""
        numbered = enumerate(indices, start=first)
        if self.own_text is None or not any(
            self.own_text.asked({i: self.questions[i] for i in index}, number)
            for number, index in numbered
        ):
            return nullcontext()
        return whole_weights(self.engine)

    def _asked(self, index: Sequence[int], number: int) -> Mapping[int, Question]:
        """Return the questions of a micro-batch, by index."""
        asked = {i: self.questions[i] for i in index}
        return asked if self.own_text is None else self.own_text.in_batch(asked, number)

    def _counts(self, asked: Collection[Mapping[int, Question]]) -> dict[str, int]:
        """Return each term's count of units over the micro-batches of all processes."""
        terms = self.player.learn.items()
        mine = {n: sum(t.count(q) for part in asked for q in part.values()) for n, t in terms}
        found = self.ranks.gather(mine)
        return {name: sum(counts[name] for counts in found) for name in mine}

    def _micro_batch(
        self, questions: Mapping[int, Question], counts: Mapping[str, int], progress: float, of: int
    ) -> MicroBatchResult:
        """Add the gradient of one of a step's `of` micro-batches; the last one makes the step.

        `counts` are each term's units over the whole step.
        """
        length = max(map(packed_length, questions.values()))
        with memory_explained(f"with a micro-batch of {len(questions)} × {length} tokens", REMEDY):
            batch = pack(questions, [*questions]).to(self.engine.device)
            sums = self.engine(batch, self.player.targets(batch), progress)
            loss = sum(
                weight * (sums[name].total / max(1, counts[name]))
                for name, weight in self.player.weights(progress).items()
            )
            # DeepSpeed takes the mean over micro-batches and processes
            self.engine.backward(loss * of)
            self.engine.step()
        return result_of(batch.tokens, sums)


def _seed_of(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> 1)
