"""Run one module as several processes on this host with torchrun, as if they were one.

Torchrun also reads its options from the environment (PET_NNODES, PET_NODE_RANK, …), through which a
launcher tells a host which of several it is; on one host the processes meet at a free port, so that
launches never collide. A process that fails writes the reason to a file of torchrun's; torchrun
then ends the others, and only the error that caused the failure is shown.
"""

import ctypes
import json
import logging
import os
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from firstkd.errors import PipelineError
from firstkd.launchers.base import Job

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
ONE_HOST = ("--standalone", "--local-addr", "127.0.0.1")
"""A host's own name may not resolve to an address."""
STOPPED = 128 + signal.SIGTERM
"""Exit code of a process that SIGTERM has ended, after it has saved its work."""
NEVER = 1e18
"""Time of a failure that went unreported."""
PR_SET_PDEATHSIG = 1


class RankError(PipelineError):
    """One of several processes failed with an error that it could explain, or lost the others."""


@dataclass(frozen=True)
class Failure:
    """Why a host's processes ended before they were done."""

    cause: Literal["explained", "killed", "crashed", "stopped"]
    """Explained by a clear error, killed by a signal, crashed, or stopped by SIGTERM and saved."""
    message: str
    time: float = NEVER
    """In seconds, by this host's clock."""

    @property
    def order(self) -> tuple[int, float]:
        """Lowest for the likely cause: when a process is gone, the others crash in the middle of
        exchanging data with it."""
        return CAUSES.index(self.cause), self.time

    def end(self) -> NoReturn:
        """Raise or exit as a single process would have."""
        if self.cause == "explained":
            raise RankError(self.message)
        sys.exit(STOPPED if self.cause == "stopped" else self.message)


CAUSES = ("explained", "killed", "crashed", "stopped")


def torchrun(job: Job, *place: str) -> Failure | None:
    """Run a job's processes on this host and wait for them to end.

    `place` are torchrun's options that say where they meet. Exits if SIGTERM ends them.
    """
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    os.environ.setdefault("OMP_NUM_THREADS", str(job.threads))  # else torchrun sets 1, and says so
    logging.getLogger().setLevel(logging.CRITICAL)
    logging.disable(logging.ERROR)  # torchrun's own report of a failure; ours is shorter
    try:
        options = [*place, "--nproc-per-node", str(job.processes)]
        options += ["--shutdown-timeout", str(round(job.stop_seconds))]
        run(parse_args([*options, "-m", job.module, *job.arguments]))
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)
    except DistError as error:
        reason = " ".join(str(error).split())
        return Failure("explained", f"the hosts did not find each other: {reason}", time.time())
    except ChildFailedError as error:
        found = [_failure(rank, failed) for rank, failed in error.failures.items()]
        return min(found, key=lambda failure: failure.order)
    return None


def _failure(rank: int, found: Any) -> Failure:
    told = found.error_file_data["message"]
    told = told if isinstance(told, dict) else {}
    when = told.get("time", NEVER)
    if told.get("expected"):
        return Failure("explained", told["message"], when)
    if found.exitcode == STOPPED:
        return Failure("stopped", "")
    if found.exitcode < 0:
        name = signal.Signals(-found.exitcode).name
        killed = (
            f"rank {rank} on {socket.gethostname()} was killed ({name}) and the others ended; "
            "if memory ran out, lower micro_batch_size or raise zero_stage"
        )
        return Failure("killed", killed, when)
    crashed = f"{told.get('traceback', '')}rank {rank} failed with exit code {found.exitcode}"
    return Failure("crashed", crashed, when)


def is_rank() -> bool:
    """Whether torchrun started this process."""
    return ERROR_FILE in os.environ


def end_with_parent() -> None:
    """Make the system send SIGTERM to this process when its parent is killed (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def take_gpu() -> None:
    """Use the GPU with this process's number on its host, if the host has any.

    Raises RankError if the host has fewer GPUs than processes.
    """
    import torch

    own, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if gpus and own >= gpus:
        raise RankError(
            f"machine.processes: {socket.gethostname()} has only {gpus} GPUs; set it to at most "
            f"{gpus}"
        )
    if gpus:
        torch.cuda.set_device(own)


def tell(error: Exception) -> None:
    """Write why this process fails to the file that `torchrun` reads."""
    now = time.time()
    told = {
        "message": str(error),
        "expected": isinstance(error, PipelineError),
        "traceback": "".join(traceback.format_exception(error)),
        "time": now,
        "extraInfo": {"py_callstack": "", "timestamp": str(int(now))},  # torchrun wants these
    }
    Path(os.environ[ERROR_FILE]).write_text(json.dumps({"message": told}), encoding="utf-8")
