"""Which examples are in which micro-batch, and how many steps that makes."""

from collections.abc import Iterator, Sequence

import numpy as np

from firstkd.data.packing import packed_length, shuffled_batches
from firstkd.data.prompts import Question
from firstkd.errors import ConfigError
from firstkd.train.settings import TrainingSettings


def training_plan(
    questions: Sequence[Question], settings: TrainingSettings, seed: int
) -> list[list[int]]:
    """Every micro-batch of all epochs, as indices; `train` drops a last incomplete step."""
    return [*micro_batches([*map(packed_length, questions)], settings, seed)]


def micro_batches(
    lengths: Sequence[int], settings: TrainingSettings, seed: int
) -> Iterator[list[int]]:
    """Yield the training plan of questions of these packed lengths."""
    generator = np.random.default_rng(seed)
    for _ in range(settings.epochs):
        yield from shuffled_batches(
            lengths, settings.micro_batch_size, settings.micro_batch_tokens, generator
        )


def number_of_steps(micro_batches: int, settings: TrainingSettings, processes: int) -> int:
    """Raise ConfigError if the micro-batches make no step, or cannot be shared out evenly."""
    per_step = settings.micro_batches_per_step
    if per_step % processes:
        raise ConfigError(
            f"micro_batches_per_step: {per_step} cannot be shared out evenly among "
            f"{processes} processes; set it to a multiple of {processes}, and "
            "micro_batch_size to as much less as leaves a step as many examples"
        )
    if micro_batches < per_step:
        raise ConfigError(
            f"micro_batches_per_step: {per_step}, but all epochs have only {micro_batches} "
            "micro-batches, which is less than one step; lower it, or add questions or epochs"
        )
    return micro_batches // per_step
