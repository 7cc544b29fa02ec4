"""What every stage does around its work: logging, errors for people, reproducibility, cost."""

import argparse
import atexit
import gc
import json
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from firstkd.errors import PipelineError
from firstkd.files import write_json

log = logging.getLogger(__name__)


def run_stage(main: Callable[..., None], name: str, argument: str | None = None) -> None:
    """Run `main(root)` or `main(root, value)` for `python -m tasks.NAME [value]`, then exit.

    The stage's wall time and peak memory go to logs/STAGE/cost.json, which is not tracked: they
    differ from run to run.
    """
    started = time.monotonic()
    values = run_program(main, name, [argument] if argument else [])
    logs = log_folder(Path("."), "@".join([name, *values]))
    cost = {
        "seconds": round(time.monotonic() - started, 3),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        **training_cost(logs / "curve.jsonl"),
    }
    write_json(logs / "cost.json", cost)


def run_program(main: Callable[..., None], name: str, arguments: Sequence[str]) -> list[str]:
    """Run `main(root, *values)` with the values that the command line gives the arguments.

    Returns these values. A PipelineError becomes one line on stderr and exit code 1.
    """
    atexit.register(gc.freeze)  # else ending looks through all imported modules, for a second
    parser = argparse.ArgumentParser(prog=f"python -m tasks.{name}")
    for argument in arguments:
        parser.add_argument(argument)
    values = list(vars(parser.parse_args()).values())
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(message)s")
    os.environ["DO_NOT_TRACK"] = "true"  # what a stage imports must not phone home
    # end through the context managers, which leave nothing half-written
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        main(Path("."), *values)
    except PipelineError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(1)
    return values


def training_cost(live_curve: Path) -> dict[str, float]:
    """Return the tokens a training stage saw, and how many a second; nothing for other stages."""
    if not live_curve.exists():
        return {}
    points = [json.loads(line) for line in live_curve.read_text(encoding="utf-8").splitlines()]
    tokens = sum(point["tokens"] for point in points)
    seconds = sum(point["tokens"] / point["tokens_per_second"] for point in points)
    return {"tokens": tokens, "tokens_per_second": round(tokens / seconds, 1)}


def log_folder(root: Path, stage: str) -> Path:
    """Return where a stage (`distill@first`) logs what is not reproducible: times, live curves."""
    return root / "logs" / stage
