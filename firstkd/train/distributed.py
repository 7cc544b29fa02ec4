"""Which of how many processes this is, as torchrun says, and what they tell each other.

torch is imported only where it is used: stages without it import this, too.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.gather(None)

    def gather(self, value: T) -> list[T]:
        """Return what each process gives, in the order of their ranks; all of them must call."""
        if self.world_size == 1:
            return [value]
        import torch

        gathered: list[T | None] = [None] * self.world_size
        torch.distributed.all_gather_object(gathered, value)
        return gathered  # type: ignore[return-value]

    def from_first(self, make: Callable[[], T]) -> T:
        """Return what the first process makes, on every process; all of them must call."""
        made: list[Any] = self.gather(make() if self.is_first else None)
        value: T = made[0]
        return value


def present_ranks() -> Ranks:
    """Return which process this is; without torchrun it is the only one."""
    return Ranks(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


def join_ranks() -> Ranks:
    """Join the processes that torchrun started; without it, make a group of one.

    DeepSpeed wants a process group, even of one.
    """
    import torch
    from torch._C._distributed_c10d import HashStore

    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        os.environ.setdefault(name, value)
    ranks = present_ranks()
    if not torch.distributed.is_initialized():
        # gloo beside NCCL: what is not on a GPU is exchanged, too
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        if ranks.world_size == 1:
            torch.distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
        else:
            torch.distributed.init_process_group(backend)
    return ranks
