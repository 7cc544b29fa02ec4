"""This process's rank, as torchrun sets it, and the exchange of values between processes.

torch is imported only where it is used, since stages without torch import this module too.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")
PATIENCE = timedelta(days=1)
"""How long a process waits for the others, which may have hours of work that is not shared. A
process that has died is noticed at once."""


@dataclass(frozen=True)
class Ranks:
    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process has reached this point."""
        self.gather(None)

    def gather(self, value: T) -> list[T]:
        """Return every process's value, in rank order; all processes must call it."""
        if self.world_size == 1:
            return [value]
        import torch

        gathered: list[T | None] = [None] * self.world_size
        torch.distributed.all_gather_object(gathered, value)
        return gathered  # type: ignore[return-value]

    def from_first(self, make: Callable[[], T]) -> T:
        """Return on every process what the first one makes; all processes must call it."""
        made: list[Any] = self.gather(make() if self.is_first else None)
        value: T = made[0]
        return value


def present_ranks() -> Ranks:
    """Return this process's rank; without torchrun it is the only process."""
    return Ranks(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


def join_ranks() -> Ranks:
    """Join the processes that torchrun started; without it, make a group of one.

    DeepSpeed needs a process group, even for one process.
    """
    import torch
    from torch._C._distributed_c10d import HashStore

    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        os.environ.setdefault(name, value)
    ranks = present_ranks()
    if not torch.distributed.is_initialized():
        # gloo beside NCCL, to exchange what is not on a GPU
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        if ranks.world_size == 1:
            torch.distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
        else:
            torch.distributed.init_process_group(backend, timeout=PATIENCE)
    return ranks


def leave_ranks() -> None:
    """Leave the processes joined by `join_ranks`, at the end of a program other than a stage.

    Otherwise gloo's threads may outlive the interpreter, which aborts the process. Not for an
    `except` or `finally`: it waits for exchanges that the other processes may never finish.
    """
    import torch

    torch.distributed.destroy_process_group()
