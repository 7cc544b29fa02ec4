"""Which of how many processes this is, as torchrun says."""

import os
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Ranks:
    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.world_size > 1:
            torch.distributed.barrier()


def join_ranks() -> Ranks:
    """Join the processes that torchrun started; without it this is the only one."""
    ranks = Ranks(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
    if ranks.world_size > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    return ranks
