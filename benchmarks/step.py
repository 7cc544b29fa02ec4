"""What a training step of `sparse_kl` costs, against fine-tuning and online distillation.

All train the same student, a random model of the default student's shape with 99 M parameters, on
the same batch of open text in the real training loop. Online distillation runs the teacher's
forward pass in the loop and compares whole distributions. Its teacher has SmolLM2-360M's shape, 3.7
times the student (the paper's 33 B are 4.7 times its 7 B), and for `kd_vs_online_small_teacher` the
default teacher's, 1.4 times. TRL's GKD trainer does the same with the larger one; its ratio is null
if the extra `trl` is not installed. Prints one JSON line of ratios.

Run as  OMP_NUM_THREADS=2 python -m benchmarks.step
"""

import importlib.util
import json
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.models import (
    CAPTURE,
    DEVICE,
    FINE_TUNING,
    MACHINE,
    PRECISION,
    SETTINGS,
    larger_random_model,
    random_model,
    wait_for_gpu,
)
from firstkd.data.packing import Batch, pack
from firstkd.data.prompts import Question
from firstkd.models.scoring import ResponseScorer
from firstkd.models.view import View
from firstkd.recalibration.temperature import Temperature
from firstkd.reproducibility import deterministic
from firstkd.signals.capture import Capture
from firstkd.signals.select import TopK
from firstkd.signals.store import SignalStore
from firstkd.signals.target import Stored
from firstkd.signals.tokens import Tokens
from firstkd.terms.base import Sum, Term
from firstkd.terms.sparse_kl import SparseKl
from firstkd.train.distributed import Ranks
from firstkd.train.loop import train
from firstkd.train.player import Player

QUESTIONS, PROMPT, RESPONSE = 8, 48, 48  # the last two in tokens
STEPS = 4


def seconds_per_step(
    questions: list[Question], learn: dict[str, Any], sources: dict[str, Any], folder: Path
) -> float:
    """Seconds of the fastest step, by the training loop's own clock."""
    live_curve = folder / "benchmark/curve.jsonl"
    plan = [list(range(QUESTIONS))] * STEPS
    player = Player(random_model(20), learn, sources)
    train(player, questions, plan, SETTINGS, MACHINE, live_curve)
    points = [json.loads(line) for line in live_curve.read_text().splitlines()]
    return min(point["step_tokens"] / point["tokens_per_second"] for point in points)


def captured(questions: list[Question], teacher: Any, folder: Path) -> Stored:
    signal = Tokens(kind="tokens", of="teacher", select=TopK(kind="top_k", k=5))
    run = Capture(signal, teacher.config.vocab_size, CAPTURE, Ranks())
    keys = range(len(questions))
    run.write(teacher, questions, keys, folder)
    run.finish(folder, identity={})
    store = SignalStore(folder)
    return Stored(signal, store, Temperature(2.0), store.positions(keys, [q.id for q in questions]))


class Dense(NamedTuple):
    logprobs_RV: Tensor


class Asked:
    """A teacher that is asked in every step."""

    def __init__(self, teacher: Any) -> None:
        self.scorer = ResponseScorer(teacher).eval()

    @torch.no_grad()
    def of(self, batch: Batch) -> Dense:
        return Dense(self.scorer.head.logits(self.scorer.hidden(batch)).log_softmax(-1))


class DenseKl(Term):
    """KL over the whole vocabulary, at the tokens of right responses."""

    kind: Literal["dense_kl"] = "dense_kl"

    def count(self, question: Question) -> int:
        assert question.gold is not None
        return len(question.responses[question.gold])

    def __call__(self, view: View, name: str, target: Any) -> Sum:
        logits = F.linear(view.hidden_NH, view.scorer.head.weight)
        divergence = F.kl_div(
            logits.float().log_softmax(-1), target.logprobs_RV, log_target=True, reduction="sum"
        )
        return Sum(divergence, len(logits), {})


def gkd_seconds(questions: list[Question], teacher: Any) -> float | None:
    """Seconds of the fastest step of TRL's GKD on the same tokens, without its own loop.

    Uses no generation (lambda 0) and forward KL (beta 0), as the online steps do.
    """
    if importlib.util.find_spec("trl") is None:
        return None
    from trl.experimental.gkd import GKDTrainer

    ids = pack(questions, range(QUESTIONS)).input_ids_BL.to(DEVICE)
    labels = ids.clone()
    labels[:, :PROMPT] = -100
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    # all of the trainer that its loss uses
    trainer: Any = SimpleNamespace(
        teacher_model=teacher, beta=0.0, generalized_jsd_loss=GKDTrainer.generalized_jsd_loss
    )
    student = random_model(20).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, fused=True)
    best = float("inf")
    for _ in range(STEPS):
        started = time.monotonic()
        GKDTrainer.compute_loss(trainer, student, inputs).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        wait_for_gpu()
        best = min(best, time.monotonic() - started)
    return best


def main() -> None:
    deterministic(seed=0, threads=torch.get_num_threads())
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 49_152, (QUESTIONS, PROMPT + RESPONSE), generator=draw).tolist()
    questions = [Question(str(i), row[:PROMPT], [row[PROMPT:]], 0) for i, row in enumerate(ids)]
    teacher, small_teacher = larger_random_model().eval(), random_model(30).eval()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        term = SparseKl.model_validate({"kind": "sparse_kl", "from": "tokens"})
        stored = captured(questions, teacher, folder / "tokens")
        distilling = seconds_per_step(questions, {"tokens": term}, {"tokens": stored}, folder)
        dense = {"dense": DenseKl()}
        others = {
            "kd_vs_finetune": seconds_per_step(questions, FINE_TUNING, {}, folder),
            "kd_vs_online": seconds_per_step(questions, dense, {"dense": Asked(teacher)}, folder),
            "kd_vs_online_small_teacher": seconds_per_step(
                questions, dense, {"dense": Asked(small_teacher)}, folder
            ),
            "kd_vs_trl": gkd_seconds(questions, teacher),
        }
    found = {name: seconds and round(distilling / seconds, 3) for name, seconds in others.items()}
    print(json.dumps({"precision": PRECISION, **found, "kd_seconds": round(distilling, 2)}))


if __name__ == "__main__":
    main()
