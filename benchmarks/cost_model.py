"""What a run of any size costs: the formulas of docs/scaling.md, to be computed again.

Storage follows from the knowledge format itself. Times are floating-point operations over the rate
that the device is taken to sustain, a number to put in, with capture's share of it as
`benchmarks.capture` measures it; opening and validation are scaled from `benchmarks.store` and
`benchmarks.validate`. Prints one JSON line: bytes and seconds.

Run as  python -m benchmarks.cost_model --teacher 33e9 --student 7e9 --examples 51974 --tokens 82
            --response-tokens 58 --vocabulary 152000 --teraflops 400
"""

import argparse
import json
from dataclasses import dataclass, fields

import torch

from firstkd.signals.knowledge import FIELDS, Knowledge, Layout

CAPTURE_SHARE = 0.90
"""Throughput of capture over that of the bare forward pass, every token supervised:
`benchmarks.capture`, capture_vs_forward_open_text."""
EXAMPLE_BYTES = 12
"""In a shard, for an example's key and its number of records."""
OPEN_SECONDS_PER_TOKEN = 0.3 / 10_076_160
"""`benchmarks.store`, open_seconds; nearly all of it for checksums, so that disks differ."""
VALIDATE_SECONDS_PER_EXAMPLE = 33 / 50_000
"""`benchmarks.validate`, seconds; on one core."""
TRAINING_BYTES_PER_PARAMETER = 16
"""bfloat16 weights and gradients, float32 master weights and Adam's two moments."""


@dataclass(frozen=True, kw_only=True)
class Run:
    teacher: float
    """Parameters."""
    student: float
    examples: float
    tokens: float
    """Of prompt and response, in an example on average."""
    response_tokens: float
    """Of these, in the response: they are what is kept."""
    vocabulary: float
    teraflops: float
    """That one device sustains, of a transformer's passes in bfloat16."""


def predict(run: Run, top_k: int = 5, tail_nodes: int = 0) -> dict[str, float]:
    """Return bytes, and seconds on one device; memory is without activations."""
    layout = Layout(
        kind="token", top_k=top_k, vocabulary_size=int(run.vocabulary), tail_nodes=tail_nodes
    )
    read, kept = run.examples * run.tokens, run.examples * run.response_tokens
    per_second = run.teraflops * 1e12
    return {
        "knowledge_bytes": kept * record_bytes(layout) + run.examples * EXAMPLE_BYTES,
        "dense_float16_bytes": kept * 2 * run.vocabulary,
        "capture_seconds": 2 * run.teacher * read / per_second / CAPTURE_SHARE,
        "teacher_bytes": 2 * run.teacher,
        "training_seconds_per_epoch": 6 * run.student * read / per_second,
        "training_bytes": TRAINING_BYTES_PER_PARAMETER * run.student,
        "validate_seconds": run.examples * VALIDATE_SECONDS_PER_EXAMPLE,
        "open_seconds": kept * OPEN_SECONDS_PER_TOKEN,
    }


def record_bytes(layout: Layout) -> int:
    """Return what one token's decision takes in a shard: of the code that writes it."""
    reals = dict.fromkeys(FIELDS[2:4], torch.zeros(1))
    one = Knowledge(
        top_ids=torch.zeros(1, layout.top_k, dtype=torch.long),
        top_logprobs=torch.zeros(1, layout.top_k),
        tail_bends=torch.zeros(1, layout.tail_nodes),
        vocabulary_size=layout.vocabulary_size,
        **reals,
    )
    return sum(field.nbytes for field in layout.pack(one).values())


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
