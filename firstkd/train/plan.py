"""The training plan: which examples form which micro-batch, and how many steps that makes."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from firstkd.data.packing import packed_length, shuffled_batches
from firstkd.data.prompts import Question
from firstkd.errors import ConfigError
from firstkd.train.settings import TrainingSettings


def training_plan(
    questions: Sequence[Question],
    settings: TrainingSettings,
    seed: int,
    sources: Sequence[str] = (),
    order: int = 0,
) -> list[list[int]]:
    """Return every micro-batch of all epochs, as indices; `train` drops a last incomplete step.

    Each value of `order` shuffles differently.

    `sources` are the questions' data sets, by which `schedule.data` chooses those for the decay.
    Raises ConfigError if it chooses none of them.
    """
    lengths = [*map(packed_length, questions)]
    plan = [*micro_batches(lengths, settings, seed, order)]
    if not settings.schedule.data:
        return plan
    chosen = [i for i, source in enumerate(sources) if source in settings.schedule.data]
    if not chosen:
        raise ConfigError(
            f"schedule.data: {', '.join(settings.schedule.data)} has no questions that this model "
            "learns from; name another data set, or none"
        )
    steps = len(plan) // settings.micro_batches_per_step
    stable = math.ceil((1 - settings.schedule.decay) * steps) * settings.micro_batches_per_step
    generator, last = np.random.default_rng([seed, order, 1]), list[list[int]]()
    while len(last) < len(plan) - stable:
        batches = _epoch([lengths[i] for i in chosen], settings, generator)
        last += [[chosen[i] for i in batch] for batch in batches]
    return plan[:stable] + last[: len(plan) - stable]


def micro_batches(
    lengths: Sequence[int], settings: TrainingSettings, seed: int, order: int = 0
) -> Iterator[list[int]]:
    """Yield the training plan for questions of these packed lengths."""
    generator = np.random.default_rng([seed, order] if order else seed)
    for _ in range(settings.epochs):
        yield from _epoch(lengths, settings, generator)


def _epoch(
    lengths: Sequence[int], settings: TrainingSettings, generator: np.random.Generator
) -> list[list[int]]:
    size, tokens = settings.micro_batch_size, settings.micro_batch_tokens
    return shuffled_batches(lengths, size, tokens, generator)


def number_of_steps(micro_batches: int, settings: TrainingSettings, processes: int) -> int:
    """Return the number of steps; raise ConfigError if it is 0 or micro-batches split unevenly."""
    per_step = settings.micro_batches_per_step
    if per_step % processes:
        raise ConfigError(
            f"micro_batches_per_step: {per_step} cannot be shared out evenly among "
            f"{processes} processes; set it to a multiple of {processes}, and lower "
            "micro_batch_size to keep the number of examples per step"
        )
    if micro_batches < per_step:
        raise ConfigError(
            f"micro_batches_per_step: {per_step}, but all epochs together have only "
            f"{micro_batches} micro-batches, less than one step; lower it, or add questions "
            "or epochs"
        )
    return micro_batches // per_step
