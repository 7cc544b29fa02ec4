"""What the fused objective costs in time and memory, against the dense one and cross-entropy.

Compares forward and backward of the ghost KL at 4,096 supervised tokens, as ratios, with the same
divergence from all logits (float32 log-softmax, full KL) and with cross-entropy through the same
fused head. Memory is the growth of the process's peak over its inputs, in a separate process for
each; another measures the times: the best of several alternating repetitions. Prints one JSON line.

Run as  OMP_NUM_THREADS=2 python -m benchmarks.loss
"""

import json
import subprocess
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.models import DEVICE, DTYPE, PRECISION, peak_growth_mb, seconds_of
from firstkd.models.head import head_scores
from firstkd.terms.divergences import sparse_kl

TOKENS, HIDDEN, TOP_K = 4096, 576, 5  # hidden size of the default model
VOCABULARIES = (49_152, 151_936)
REPETITIONS = 3


def losses(vocabulary: int) -> dict[str, Callable[[], Tensor]]:
    """One function per objective, which computes it."""
    torch.set_default_device(DEVICE)
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, dtype=DTYPE, requires_grad=True)
    weight = (torch.randn(vocabulary, HIDDEN) / HIDDEN**0.5).to(DTYPE).requires_grad_()
    targets = torch.randint(vocabulary, (TOKENS,))
    top_ids = torch.stack([torch.randperm(1024)[:TOP_K] for _ in range(TOKENS)])
    top = torch.rand(TOKENS, TOP_K).softmax(-1) * 0.9
    rows, no_row = torch.arange(TOKENS), torch.zeros(0, dtype=torch.int64)

    def fused() -> Tensor:
        found = head_scores(hidden, weight, no_row, no_row, rows, top_ids)
        tail = 1 - top.sum(-1)
        return sparse_kl(top, tail, found.top_logprobs_RK, found.log_tail_R, "ghost").mean()

    def cross_entropy() -> Tensor:
        found = head_scores(hidden, weight, rows, targets, no_row, no_row[:, None])
        return -found.logprobs_M.mean()

    def dense() -> Tensor:
        logprobs = (hidden @ weight.T).float().log_softmax(-1)
        return F.kl_div(logprobs, teacher, reduction="batchmean")

    if "dense" in sys.argv or "time" in sys.argv:  # its probabilities are an input too
        rest = 0.1 / (vocabulary - TOP_K)
        teacher = torch.full((TOKENS, vocabulary), rest, dtype=DTYPE)
        teacher.scatter_(-1, top_ids, top.to(DTYPE))
    return {"fused": fused, "cross_entropy": cross_entropy, "dense": dense}


def run(function: Callable[[], Tensor]) -> None:
    function().backward()


def measure_time(vocabulary: int) -> dict[str, float]:
    """Seconds of each objective."""
    best: dict[str, float] = {}
    functions = losses(vocabulary)
    for _ in range(REPETITIONS + 1):  # the first one warms up
        for name, function in functions.items():
            seconds = seconds_of(lambda function=function: run(function))
            best[name] = min(seconds, best.get(name, seconds))
    return best


def measure_memory(vocabulary: int, name: str) -> float:
    """Return by how many MB one objective raises peak memory above its inputs."""
    function = losses(vocabulary)[name]
    return peak_growth_mb(lambda: run(function))


def in_process(*arguments: str) -> object:
    command = [sys.executable, "-m", "benchmarks.loss", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    found = {}
    for vocabulary in VOCABULARIES:
        seconds = in_process(str(vocabulary), "time")
        memory = {name: in_process(str(vocabulary), name) for name in ("fused", "dense")}
        found[f"V{vocabulary}"] = {
            "time_vs_dense": round(seconds["fused"] / seconds["dense"], 3),
            "memory_vs_dense": round(memory["fused"] / memory["dense"], 3),
            "time_vs_ce": round(seconds["fused"] / seconds["cross_entropy"], 3),
            **{f"{name}_seconds": round(value, 2) for name, value in seconds.items()},
            **{f"{name}_mb": round(value) for name, value in memory.items()},
        }
    print(json.dumps({"precision": PRECISION, **found}))


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    elif sys.argv[2] == "time":
        print(json.dumps(measure_time(int(sys.argv[1]))))
    else:
        print(json.dumps(measure_memory(int(sys.argv[1]), sys.argv[2])))
