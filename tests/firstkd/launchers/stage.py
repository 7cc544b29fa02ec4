"""A stage for the tests of launchers, of a moment: it meets, fails or waits on two hosts.

Run as  python -m tests.firstkd.launchers.stage FOLDER WHAT
"""

import time
from pathlib import Path

from firstkd.errors import PipelineError
from firstkd.launchers.base import Job
from firstkd.launchers.host import is_host, run_host
from firstkd.launchers.torchrun import is_rank
from firstkd.train.distributed import join_ranks
from tasks.stage import run_program

SECONDS = 100


def job(folder: str, what: str) -> Job:
    return Job("tests.firstkd.launchers.stage", [folder, what], 1, 1, 60.0, Path(folder, "logs"))


def main(root: Path, folder: str, what: str) -> None:
    if is_host() and not is_rank():
        run_host(job(folder, what))
        return
    ranks = join_ranks()
    (Path(folder) / f"{what}-{ranks.rank}").write_text(str(ranks.gather(ranks.rank)))
    if what == "fail" and ranks.rank == 1:
        raise PipelineError("the second one says why")
    if what == "wait":
        try:
            time.sleep(SECONDS)
        except SystemExit:
            (Path(folder) / f"stopped-{ranks.rank}").touch()
            raise
    ranks.barrier()


if __name__ == "__main__":
    run_program(main, "stage", ["folder", "what"])
