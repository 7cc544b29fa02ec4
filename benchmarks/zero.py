"""What ZeRO saves: memory per process at two processes ÷ at one, and the speed of each stage.

Counts the tensors that a stage shards, as they lie in memory at the end of a backward pass: stage 1
optimizer states (float32 weights and Adam's moments), stage 2 also gradients, stage 3 also bfloat16
weights. The buckets in which gradients are exchanged come on top; their size is constant
(firstkd/train/engine.py). Prints one JSON line; both processes share this machine's processors, so
the speeds compare stages, not numbers of processes.

Run as  OMP_NUM_THREADS=1 python -m benchmarks.zero [--tiny]
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from benchmarks.models import FINE_TUNING, MACHINE, SETTINGS, random_model, wait_for_gpu
from firstkd.data.packing import pack
from firstkd.data.prompts import Question
from firstkd.reproducibility import deterministic
from firstkd.train.distributed import Ranks, join_ranks, leave_ranks
from firstkd.train.engine import end_engine, make_engine
from firstkd.train.player import Player

STEPS = 4
QUESTIONS, PROMPT, RESPONSE = 16, 48, 16  # per step; the last two in tokens
MICRO_BATCHES = 2


def measure(stage: int, layers: int, ranks: Ranks) -> dict[str, float]:
    """Train for a few steps; return bytes of this process and tokens/s of all together."""
    deterministic(seed=0, threads=1)
    ids = torch.randint(3, 49_152, (QUESTIONS, PROMPT + RESPONSE)).tolist()
    questions = [Question(str(i), row[:PROMPT], [row[PROMPT:]], 0) for i, row in enumerate(ids)]
    settings = SETTINGS.model_copy(update={"micro_batches_per_step": MICRO_BATCHES})
    machine = MACHINE.model_copy(update={"zero_stage": stage})
    engine = make_engine(Player(random_model(layers), FINE_TUNING, {}), settings, machine, ranks)
    size = QUESTIONS // MICRO_BATCHES
    fastest, gradients = float("inf"), 0
    for _ in range(STEPS):
        started = time.monotonic()
        for number in range(ranks.rank, MICRO_BATCHES, ranks.world_size):
            batch = pack(questions, range(number * size, (number + 1) * size)).to(engine.device)
            found = engine(batch, {})["gold"]
            engine.backward(found.total / found.units)
            if engine.is_gradient_accumulation_boundary():
                gradients = gradient_bytes(engine)
            engine.step()
        wait_for_gpu()
        ranks.barrier()
        fastest = min(fastest, time.monotonic() - started)
    sizes = {
        "states": state_bytes(engine),
        "gradients": gradients,
        "weights": weight_bytes(engine),
        "tokens_per_second": QUESTIONS * (PROMPT + RESPONSE) / fastest,
    }
    end_engine(engine, ranks)
    return sizes


def total_bytes(tensors: Iterable[Tensor | None]) -> int:
    """Return the size of the tensors themselves, not of a bucket that they may be views of."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def state_bytes(engine: Any) -> int:
    state = engine.optimizer.optimizer.state
    return total_bytes([*state, *(t for kept in state.values() for t in kept.values())])


def gradient_bytes(engine: Any) -> int:
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        return total_bytes([optimizer.grad_partitions_flat_buffer])
    kept = getattr(optimizer, "averaged_gradients", {}).values()
    shards = [tensor for group in kept if group is not None for tensor in group]
    return total_bytes([*shards, *(p.grad for p in engine.module.parameters())])


def weight_bytes(engine: Any) -> int:
    return total_bytes(getattr(p, "ds_tensor", p.data) for p in engine.module.parameters())


SHARDED = {1: ("states",), 2: ("states", "gradients"), 3: ("states", "gradients", "weights")}


def in_processes(count: int, layers: int) -> dict[str, dict[str, float]]:
    """Return what the first of `count` processes measures, by stage."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    command = [*torchrun, "-m", "benchmarks.zero", "measure", str(layers)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(layers: int) -> None:
    counts = {"two": 2, "one": 1}
    if torch.cuda.device_count() == 1:
        del counts["two"]  # NCCL refuses two processes on one GPU
    at_counts = {name: in_processes(count, layers) for name, count in counts.items()}
    found: dict[str, Any] = {}
    for stage, kinds in SHARDED.items():
        sizes = {
            name: sum(at[str(stage)][kind] for kind in kinds) for name, at in at_counts.items()
        }
        if "two" in sizes:
            found[f"memory_ratio_stage{stage}"] = round(sizes["two"] / sizes["one"], 3)
    for name, measured in at_counts.items():
        found[f"tokens_per_second_{name}"] = {
            stage: round(at["tokens_per_second"]) for stage, at in measured.items()
        }
    print(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        joined = join_ranks()
        measured = {stage: measure(stage, int(sys.argv[2]), joined) for stage in range(4)}
        if joined.is_first:
            print(json.dumps(measured))
        leave_ranks()
    else:
        main(layers=1 if "--tiny" in sys.argv else 10)
