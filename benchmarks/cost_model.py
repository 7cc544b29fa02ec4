"""What a run of any size costs: the formulas of docs/scaling.md as a program.

Storage follows from the signal's own columns. Times are floating-point operations over the rate
that you assume the device sustains; capture reaches the share of it that `benchmarks.capture`
measures. Opening and validation are scaled from `benchmarks.store` and `benchmarks.data`. Prints
one JSON line: bytes and seconds.

Run as  python -m benchmarks.cost_model --teacher 33e9 --student 7e9 --examples 51974 --tokens 82
            --response-tokens 58 --vocabulary 152000 --teraflops 400
"""

import argparse
import json
from dataclasses import dataclass, fields
from typing import Literal

from firstkd.signals.columns import Layout
from firstkd.signals.select import TopK
from firstkd.signals.tokens import Tokens

CAPTURE_SHARE = 0.90
"""Throughput of capture over that of the bare forward pass, with every token supervised:
`benchmarks.capture`, capture_vs_forward_open_text."""
EXAMPLE_BYTES = 12
"""Taken in a shard by an example's key and its number of records."""
OPEN_SECONDS_PER_TOKEN = 0.3 / 10_076_160
"""`benchmarks.store`, open_seconds; nearly all of it for checksums, so it depends on the disk."""
VALIDATE_SECONDS_PER_EXAMPLE = 3566 / 5_000_000
"""`benchmarks.data`, validate_seconds; on one core."""
TRAINING_BYTES_PER_PARAMETER = 16
"""bfloat16 weights and gradients, float32 master weights and Adam's two moments."""


@dataclass(frozen=True, kw_only=True)
class Run:
    teacher: float
    """Parameters."""
    student: float
    examples: float
    tokens: float
    """Average length of an example, prompt and response."""
    response_tokens: float
    """Those of the response, which are the ones kept."""
    vocabulary: float
    teraflops: float
    """Sustained by one device in a transformer's bfloat16 passes."""


def predict(run: Run, top_k: int = 5, tail_nodes: Literal[0, 8] = 0) -> dict[str, float]:
    """Return bytes, and seconds on one device; memory excludes activations."""
    signal = Tokens(
        kind="tokens", of="teacher", select=TopK(kind="top_k", k=top_k), tail_nodes=tail_nodes
    )
    layout = signal.layout(int(run.vocabulary))
    read, kept = run.examples * run.tokens, run.examples * run.response_tokens
    per_second = run.teraflops * 1e12
    return {
        "signal_bytes": kept * record_bytes(layout) + run.examples * EXAMPLE_BYTES,
        "dense_float16_bytes": kept * 2 * run.vocabulary,
        "capture_seconds": 2 * run.teacher * read / per_second / CAPTURE_SHARE,
        "teacher_bytes": 2 * run.teacher,
        "training_seconds_per_epoch": 6 * run.student * read / per_second,
        "training_bytes": TRAINING_BYTES_PER_PARAMETER * run.student,
        "validate_seconds": run.examples * VALIDATE_SECONDS_PER_EXAMPLE,
        "open_seconds": kept * OPEN_SECONDS_PER_TOKEN,
    }


def record_bytes(layout: Layout) -> int:
    """Return the bytes that one record takes in a shard."""
    return sum(column.dtype.itemsize * (column.width or 1) for column in layout.values())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost_model")
    for field in fields(Run):
        name = f"--{field.name.replace('_', '-')}"
        parser.add_argument(name, type=float, required=True, dest=field.name)
    print(
        json.dumps(
            {
                name: float(f"{v:.3g}")
                for name, v in predict(Run(**vars(parser.parse_args()))).items()
            }
        )
    )


if __name__ == "__main__":
    main()
