"""What training costs by batch size, attention, precision and ZeRO stage.

Measures tokens per second and per euro, after Apple's study of where small models lose them
(Ashkboos et al. 2024, arXiv 2410.19456). Fine-tunes a random model of the default student's shape
for a few steps, on questions as long as CommonsenseQA's, changing one thing at a time from the
default: one process, eager attention on a CPU and sdpa on a GPU, the precision that the machine
computes in, 32 questions per process. `ddp` is torch's own DistributedDataParallel in a bare loop;
the others are the engine's ZeRO stages, which with several processes are at least 1 in float32 and
2 in bfloat16 (firstkd/train/engine.py).

Each row is measured in separate processes and appended to the file of rows, so that an interrupted
run can resume; prints the table of all rows. Processes on a CPU share its cores.

Run as  python -m benchmarks.economics --euros-per-hour 0.10 [--out economics.jsonl] [--tiny]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import FINE_TUNING, MACHINE, PRECISION, SETTINGS, random_model
from benchmarks.train import questions_of_many_lengths
from firstkd.data.packing import Batch, pack, packed_length
from firstkd.reproducibility import deterministic
from firstkd.train.distributed import Ranks, join_ranks, leave_ranks
from firstkd.train.engine import make_engine
from firstkd.train.player import Player

STEPS, WARM_UP = 3, 1
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
Row = dict[str, Any]


def wanted(tiny: bool) -> list[Row]:
    """Return what to measure: the default, and the default with one thing changed."""
    gpus = torch.cuda.device_count()
    threads = torch.get_num_threads()
    default: Row = {
        "processes": 1,
        "zero_stage": 0,
        "precision": PRECISION,
        "attention": "sdpa" if gpus else "eager",
        "questions": 4 if tiny else 32,
        "layers": 1 if tiny else 20,
        "threads": threads,
    }
    several = {"processes": gpus if gpus > 1 else 2, "threads": max(1, threads // 2)}
    changes: list[Row] = [{}]
    changes += [{"questions": size} for size in ([8] if tiny else [1, 4, 8, 16, 64])]
    changes += [{"attention": kind} for kind in ("eager", "sdpa")]
    changes += [{"precision": precision} for precision in DTYPES]
    if gpus != 1:  # two processes cannot share a GPU
        changes += [{**several, "zero_stage": stage} for stage in ("ddp", 1, 2, 3)]
    rows = [{**default, **change} for change in changes]
    return [row for number, row in enumerate(rows) if row not in rows[:number]]


def engine_step(player: Player, row: Row, ranks: Ranks) -> tuple[Callable[[Batch], None], int]:
    """Return a function that takes one step of the engine, and the engine's actual ZeRO stage."""
    settings = SETTINGS.model_copy(
        update={"precision": row["precision"], "micro_batches_per_step": ranks.world_size}
    )
    machine = MACHINE.model_copy(update={"zero_stage": row["zero_stage"]})
    engine = make_engine(player, settings, machine, ranks)

    def step(batch: Batch) -> None:
        found = engine(batch.to(engine.device), {})["gold"]
        engine.backward(found.total / found.units)
        engine.step()

    return step, engine.zero_optimization_stage()


def ddp_step(player: Player) -> Callable[[Batch], None]:
    """Return a function that takes one step in torch alone, with float32 master weights."""
    device = (
        torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else None
    )
    player = player.to(device or "cpu").train()
    parallel = torch.nn.parallel.DistributedDataParallel(player)
    weights = [*player.parameters()]
    masters = [weight.detach().float() for weight in weights]
    optimizer = torch.optim.AdamW(masters, lr=1e-5, betas=(0.9, 0.95), fused=True)

    def step(batch: Batch) -> None:
        found = parallel(batch.to(weights[0].device), {})["gold"]
        (found.total / found.units).backward()
        for weight, master in zip(weights, masters, strict=True):
            assert weight.grad is not None
            master.grad, weight.grad = weight.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        for weight, master in zip(weights, masters, strict=True):
            weight.data.copy_(master)

    return step


def measure(row: Row) -> Row:
    """Train for a few steps; return tokens/s of all processes together, and the memory of each."""
    ranks = join_ranks()
    deterministic(seed=0, threads=row["threads"])
    model = random_model(row["layers"], row["attention"], DTYPES[row["precision"]])
    player = Player(model, FINE_TUNING, {})
    if row["zero_stage"] == "ddp":
        step, stage = ddp_step(player), None
    else:
        step, stage = engine_step(player, row, ranks)
    size, seconds = row["questions"], 0.0
    questions = questions_of_many_lengths(size * ranks.world_size * (WARM_UP + STEPS))
    for number in range(WARM_UP + STEPS):
        first = (number * ranks.world_size + ranks.rank) * size
        batch = pack(questions, range(first, first + size))
        ranks.barrier()
        started = time.monotonic()
        step(batch)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        ranks.barrier()
        seconds += (time.monotonic() - started) * (number >= WARM_UP)
    timed = questions[WARM_UP * ranks.world_size * size :]
    tokens = sum(map(packed_length, timed)) / seconds
    return {**row, "actual_stage": stage, "tokens_per_second": tokens, "gigabytes": peak() / 1e9}


def peak() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_processes(row: Row) -> Row:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node", str(row["processes"]), "-m", "benchmarks.economics"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(row["threads"])}
    done = subprocess.run(
        [*command, "--measure", json.dumps(row)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: Row = json.loads(done.stdout.splitlines()[-1])
    return found


def table(rows: Sequence[Row], euros_per_hour: float) -> str:
    heads = ["processes", "stage", "precision", "attention", "questions", "tokens/s", "GB"]
    heads += ["million tokens/€"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        per_euro = row["tokens_per_second"] * 3600 / euros_per_hour / 1e6
        stage = "ddp" if row["actual_stage"] is None else f"ZeRO {row['actual_stage']}"
        cells = [row["processes"], stage, row["precision"], row["attention"], row["questions"]]
        cells += [f"{row['tokens_per_second']:.0f}", f"{row['gigabytes']:.1f}", f"{per_euro:.1f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main(out: Path, euros_per_hour: float, tiny: bool) -> None:
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    for row in wanted(tiny):
        if not any(row.items() <= found.items() for found in rows):
            rows.append(in_processes(row))
            with out.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(table(rows[-1:], euros_per_hour).splitlines()[-1], file=sys.stderr)
    print(table(rows, euros_per_hour))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--euros-per-hour", type=float, default=1.0, help="of the whole machine")
    parser.add_argument("--out", type=Path, default=Path("economics.jsonl"))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measured = measure(given.measure)
        if join_ranks().is_first:
            print(json.dumps(measured))
        leave_ranks()
    else:
        main(given.out, given.euros_per_hour, given.tiny)
