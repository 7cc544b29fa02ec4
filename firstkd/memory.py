"""Running out of memory, explained: which settings to lower."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from firstkd.errors import OutOfMemoryError

BATCH_SETTINGS = "lower the stage's micro_batch_size or micro_batch_tokens in params.yaml"
"""The remedy of a stage that only reads a model."""

NO_MEMORY = ("DefaultCPUAllocator", "Cannot allocate memory")
"""What torch's plain RuntimeErrors say where it could not allocate, or map a file of weights."""


@contextmanager
def memory_explained(when: str, remedy: str = BATCH_SETTINGS) -> Iterator[None]:
    """Turn every way of running out of memory into one error that says what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        on_gpu_or_numpy = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not on_gpu_or_numpy and not any(said in str(error) for said in NO_MEMORY):
            raise
        raise OutOfMemoryError(f"memory ran out {when}; {remedy}") from error
