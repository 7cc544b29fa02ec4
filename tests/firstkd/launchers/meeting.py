"""What the tests of launches run: ranks that end only when those of every launch have begun."""

import sys
import time
from pathlib import Path

from firstkd.train.distributed import join_ranks, leave_ranks

SECONDS = 100


def main(folder: Path, name: str, ranks_of_all: int) -> None:
    ranks = join_ranks()
    (folder / f"{name}-{ranks.rank}").touch()
    deadline = time.monotonic() + SECONDS
    while len(list(folder.iterdir())) < ranks_of_all:
        assert time.monotonic() < deadline, "the other launch has not begun"
        time.sleep(0.05)
    assert ranks.gather(name) == [name] * ranks.world_size
    leave_ranks()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
