"""What every stage does around its work: logging, readable errors, reproducibility, cost."""

import argparse
import atexit
import gc
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from firstkd.errors import PipelineError
from firstkd.files import disk_refusal, write_json
from firstkd.launchers.base import Job
from firstkd.launchers.host import is_host, run_host
from firstkd.launchers.torchrun import end_with_parent, is_rank, take_gpu, tell
from firstkd.settings import load_settings
from firstkd.train.distributed import present_ranks
from firstkd.train.settings import MachineSettings
from tasks.costs import CURVE, USAGE, asking_cost, training_cost
from tasks.graph import check_graph
from tasks.layout import log_folder

log = logging.getLogger(__name__)


def run_stage(
    main: Callable[..., None],
    name: str,
    argument: str | None = None,
    in_all: Callable[[MachineSettings], bool] | None = None,
) -> None:
    """Run `main(root)` or `main(root, value)` for `python -m tasks.NAME [value]`, then exit.

    The stage's wall time and peak memory go to logs/STAGE/cost.json, which is not tracked: they
    differ from run to run. If `in_all` returns True for the machine, the stage runs in all
    `machine.processes`, on all hosts of `machine.launcher`.
    """

    def stage(root: Path, *values: str) -> None:
        settings = load_settings(root / "params.yaml")
        check_graph(root, settings)
        logs = log_folder(root, "-".join([name, *values]))
        if in_all and in_all(settings.machine) and not is_rank():
            machine, threads = settings.machine, settings.runtime.threads
            stop_seconds = settings.retrain.stop_seconds
            job = Job(f"tasks.{name}", values, machine.processes, threads, stop_seconds, logs)
            if is_host():
                run_host(job)
                return
            if machine.processes > 1 or not machine.launcher.is_here:
                machine.launcher.launch(job)  # the first process writes the cost
                return
        started, since = time.monotonic(), time.time()
        main(root, *values)
        if present_ranks().is_first:
            _write_cost(logs, time.monotonic() - started, since)

    run_program(stage, name, [argument] if argument else [])


def run_program(main: Callable[..., None], name: str, arguments: Sequence[str]) -> None:
    """Run `main(root, *values)` with the values of the arguments on the command line.

    A PipelineError, or a failed write to disk, becomes one line on stderr and its exit code;
    anything else is a crash, with a traceback and exit code 1.
    """
    atexit.register(gc.freeze)  # else exiting scans all imported modules, for a second
    parser = argparse.ArgumentParser(prog=f"python -m tasks.{name}")
    for argument in arguments:
        parser.add_argument(argument)
    values = list(vars(parser.parse_args()).values())
    ranks = present_ranks()
    logging.basicConfig(
        level=logging.INFO if ranks.is_first else logging.WARNING,
        stream=sys.stderr,
        format="%(levelname)s %(message)s"
        if ranks.is_first
        else f"[rank {ranks.rank}] %(message)s",
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)  # else it logs every request
    os.environ["DO_NOT_TRACK"] = "true"  # what a stage imports must not phone home
    # exit through the context managers, which leave nothing half-written
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if is_rank():
        end_with_parent()
    try:
        if is_rank():
            take_gpu()
        main(Path("."), *values)
        if is_rank():
            logging.shutdown()
            # skip the libraries' destructors: one aborted because its thread was still running
            os._exit(0)
    except Exception as error:
        known = error if isinstance(error, PipelineError) else disk_refusal(error)
        if is_rank():
            tell(known or error)
            os._exit(1)  # the libraries' cleanup waits for ranks that may be gone
        if known is None:
            raise
        # on a new line: a progress bar may still be open
        print(f"\n{name}: {known}", file=sys.stderr)
        sys.exit(known.exit_code)


def _write_cost(logs: Path, seconds: float, since: float) -> None:
    """Write what the stage cost; what an earlier run logged, before `since`, does not count."""
    for name in (CURVE, USAGE):
        if (logs / name).exists() and (logs / name).stat().st_mtime < since:
            (logs / name).unlink()
    cost = {
        "seconds": round(seconds, 3),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        **training_cost(logs / CURVE),
        **asking_cost(logs),
    }
    write_json(logs / "cost.json", cost)
