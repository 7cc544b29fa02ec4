"""Explain running out of memory: which settings to lower."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from firstkd.errors import OutOfMemoryError

BATCH_SETTINGS = "lower the stage's micro_batch_size or micro_batch_tokens in params.yaml"
"""The remedy for a stage that only runs a model, without training it."""

NO_MEMORY = ("DefaultCPUAllocator", "Cannot allocate memory")
"""What torch's plain RuntimeErrors say if it cannot allocate memory or map a weight file."""


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
