"""One training loop for teacher and student, under DeepSpeed ZeRO, in one process or many.

The loop counts optimizer steps. Each takes `micro_batches_per_step` micro-batches from a plan that
the seed fixes in advance, and shares them out among the processes: their number decides who
computes what, not what is learned. The learning rate and the random numbers follow from the step,
so that a checkpoint after it is all that going on needs.
"""

import logging
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from firstkd.data.packing import pack, packed_length
from firstkd.data.prompts import Question
from firstkd.errors import TrainingDivergedError
from firstkd.memory import memory_explained
from firstkd.train.checkpoints import Checkpoints
from firstkd.train.curve import SPEEDS, MicroBatchResult, per_unit, result_of, shown_live
from firstkd.train.distributed import Ranks, join_ranks
from firstkd.train.engine import end_engine, make_engine
from firstkd.train.plan import number_of_steps
from firstkd.train.player import Player
from firstkd.train.settings import MachineSettings, TrainingSettings

log = logging.getLogger(__name__)

REMEDY = (
    "lower micro_batch_size or micro_batch_tokens and raise micro_batches_per_step, or set "
    "gradient_checkpointing, a higher zero_stage or cpu_offload under machine"
)
"""Against running out of memory."""


def train(
    player: Player,
    questions: Sequence[Question],
    plan: Sequence[Sequence[int]],
    settings: TrainingSettings,
    machine: MachineSettings,
    live_curve: Path,
    checkpoints: Path | None = None,
) -> list[dict[str, float]]:
    """Train the player's model in place and return its curve: step, loss, learning rate, gradient
    norm, the loss of each term by its name, and the terms' measures.

    `plan` is every micro-batch in order, as indices of questions (`training_plan`). With ZeRO 3
    only the first process has the model's whole weights in the end.

    With a folder for `checkpoints`, training goes on from the newest there, and saves one every
    `checkpoint_steps`; at SIGTERM it finishes the step, saves and exits.

    The curve with speeds is appended to `live_curve` as it grows, one JSON object per line.
    Raises TrainingDivergedError at the first step whose loss or gradient is not finite, and
    OutOfMemoryError.
    """
    ranks = join_ranks()
    steps = number_of_steps(len(plan), settings, ranks.world_size)
    per_step = settings.micro_batches_per_step
    seed = torch.initial_seed()
    saver = Checkpoints(checkpoints, ranks) if checkpoints else None
    saved = saver.newest() if saver else None
    if saved:
        saved.load_weights(player)
    with memory_explained("with the optimizer's states", REMEDY):
        engine = make_engine(player, settings, machine, ranks)
    if saved:
        saved.load_optimizer(engine)
        log.info("going on after step %d of %d", saved.step, steps)
    done, curve = (saved.step, saved.points) if saved else (0, [])
    interval = machine.checkpoint_steps or steps + 1
    with shown_live(live_curve, curve, steps, ranks) as show, _sigterm(held=bool(saver)) as asked:
        for step in range(done, steps):
            started = time.monotonic()
            learning_rate = _set_learning_rate(engine, settings, step, steps)
            first = step * per_step
            indices = plan[first : first + per_step]
            results = _step(engine, player, questions, indices, first, step / steps, ranks, seed)
            losses = per_unit(result.losses for result in results)
            value = sum(
                term.weight_at(step / steps) * losses[name] for name, term in player.learn.items()
            )
            norm = float(engine.get_global_grad_norm())
            _check_finite(value, norm, step, learning_rate, questions, indices)
            point = {
                "step": step + 1,
                "loss": value,
                "learning_rate": learning_rate,
                "gradient_norm": norm,
                "loss_scale": float(engine.loss_scale()),
                **losses,
                **per_unit(result.measures for result in results),
            }
            tokens = sum(result.tokens for result in results)
            speed = tokens / (time.monotonic() - started)
            curve.append({**point, "step_tokens": tokens, "tokens_per_second": speed})
            show(curve[-1])
            if saver is None:
                continue
            stop = any(ranks.gather(asked.is_set()))
            if stop or (step + 1) % interval == 0:
                saver.save(engine, step + 1, curve)
            if stop:
                log.warning("stopped after step %d of %d, which is saved", step + 1, steps)
                sys.exit(128 + signal.SIGTERM)
    end_engine(engine, ranks)
    return [{k: v for k, v in point.items() if k not in SPEEDS} for point in curve]


def learning_rate_at(settings: TrainingSettings, step: int, steps: int) -> float:
    """Linear warm-up over `warmup_ratio` of the steps, then a cosine to 0."""
    warmup = settings.warmup_ratio * steps
    if step < warmup:
        return settings.learning_rate * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1.0, steps - warmup)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def _step(
    engine: Any,
    player: Player,
    questions: Sequence[Question],
    indices: Sequence[Sequence[int]],
    first: int,
    progress: float,
    ranks: Ranks,
    seed: int,
) -> list[MicroBatchResult]:
    """Make one optimizer step on the micro-batches `indices`, the plan's from `first` on.

    Each term's sum is divided by its count over the whole step, so that the step is one of all
    micro-batches together, however they are cut. Returns what every process's have shown.
    """
    counts = {
        name: sum(term.count(questions[i]) for index in indices for i in index)
        for name, term in player.learn.items()
    }
    mine = []
    for position in range(ranks.rank, len(indices), ranks.world_size):
        index = indices[position]
        # the random numbers (dropout) belong to the micro-batch, whoever computes it and when
        torch.manual_seed(_seed_of(seed, first + position))
        length = max(packed_length(questions[i]) for i in index)
        with memory_explained(f"with a micro-batch of {len(index)} × {length} tokens", REMEDY):
            batch = pack(questions, index).to(engine.device)
            sums = engine(batch, player.targets(batch))
            loss = sum(
                term.weight_at(progress) * (sums[name].total / max(1, counts[name]))
                for name, term in player.learn.items()
            )
            # DeepSpeed takes the mean over micro-batches and processes
            engine.backward(loss * len(indices))
            engine.step()
        mine.append(result_of(batch.tokens, sums))
    return [result for turn in zip(*ranks.gather(mine), strict=True) for result in turn]


def _seed_of(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def _sigterm(held: bool) -> Iterator[threading.Event]:
    """Yield what is set by SIGTERM, which meanwhile does nothing else; only where it is `held`."""
    asked = threading.Event()
    if not held:
        yield asked
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def _set_learning_rate(engine: Any, settings: TrainingSettings, step: int, steps: int) -> float:
    learning_rate = learning_rate_at(settings, step, steps)
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate
    return learning_rate


def _check_finite(
    loss: float,
    norm: float,
    step: int,
    learning_rate: float,
    questions: Sequence[Question],
    indices: Sequence[Sequence[int]],
) -> None:
    if math.isfinite(loss) and math.isfinite(norm):
        return
    ids = [questions[i].id for index in indices for i in index]
    raise TrainingDivergedError(
        f"step {step + 1}: loss {loss}, gradient norm {norm} at learning rate "
        f"{learning_rate:.3g}; lower learning_rate or look at the examples {', '.join(ids)}"
    )
