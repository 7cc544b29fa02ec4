"""Several processes of one module, by torchrun, as if they were one.

Torchrun reads its own options from the environment, too (PET_NNODES, PET_NODE_RANK,
PET_RDZV_ENDPOINT, …), which is how several hosts find each other; on one host the processes meet
at a free port, so that launches never collide. A process that fails tells why in a
file of torchrun's; when one has ended, torchrun ends the others, and the error that was the cause
is the one that is shown.
"""

import ctypes
import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from firstkd.errors import PipelineError

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
ANOTHER_HOST = "PET_NNODES"
ONE_HOST = ("--standalone", "--local-addr", "127.0.0.1")
"""A host's own name need not have an address."""
PR_SET_PDEATHSIG = 1


class RankError(PipelineError):
    """A process among several failed by an error that it could explain, or the others were gone."""


def needs_launch(processes: int) -> bool:
    """Whether this is a process to start others, not one of those that torchrun started."""
    return (processes > 1 or ANOTHER_HOST in os.environ) and "WORLD_SIZE" not in os.environ


def launch(module: str, arguments: Sequence[str], processes: int, threads: int) -> None:
    """Run `python -m module arguments` as several processes and wait for their end.

    Raises RankError with the first failing process's own PipelineError, and where hosts do not find
    each other. Any other failure is shown with its traceback, and the exit code is 1.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import parse_args, run

    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # else torchrun sets 1, and says so
    logging.getLogger().setLevel(logging.CRITICAL)
    logging.disable(logging.ERROR)  # torchrun's own account of a failure; ours is shorter
    place = () if ANOTHER_HOST in os.environ else ONE_HOST
    try:
        run(parse_args([*place, "--nproc-per-node", str(processes), "-m", module, *arguments]))
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)
    except RendezvousError as error:
        raise RankError(
            f"the hosts did not find each other: {error.__cause__ or error}; check that "
            "PET_RDZV_ENDPOINT is an address of the first host, that it runs the same command, "
            "and that nothing keeps the others from its port"
        ) from error
    except ChildFailedError as error:
        rank, failure = min(error.failures.items(), key=lambda item: _likely_cause(item[1]))
        told = _told(failure)
        if told.get("expected"):
            raise RankError(told["message"]) from None
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            sys.exit(
                f"rank {rank} was killed ({name}) and the others ended; where memory ran out, "
                "lower micro_batch_size, or set a higher zero_stage"
            )
        sys.exit(f"{told.get('traceback', '')}rank {rank} failed, exit code {failure.exitcode}")


def _likely_cause(failure: Any) -> tuple[int, float]:
    """Sort key of failures: explained ones first, then killed ones, then by time.

    When a process is gone, the others fail, too, in the middle of their exchange with it.
    """
    told = _told(failure)
    if told.get("expected"):
        return 0, told["time"]
    return (1 if failure.exitcode < 0 else 2), told.get("time", float("inf"))


def _told(failure: Any) -> dict[str, Any]:
    found = failure.error_file_data["message"]
    return found if isinstance(found, dict) else {}


def is_rank() -> bool:
    """Whether torchrun started this process."""
    return ERROR_FILE in os.environ


def end_with_parent() -> None:
    """Make the system send SIGTERM to this process when torchrun is killed (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def tell(error: Exception) -> None:
    """Write why this process fails to where `launch` looks."""
    now = time.time()
    told = {
        "message": str(error),
        "expected": isinstance(error, PipelineError),
        "traceback": "".join(traceback.format_exception(error)),
        "time": now,
        "extraInfo": {"py_callstack": "", "timestamp": str(int(now))},  # torchrun wants these
    }
    Path(os.environ[ERROR_FILE]).write_text(json.dumps({"message": told}), encoding="utf-8")
