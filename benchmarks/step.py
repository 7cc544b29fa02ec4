"""What a training step of `first` costs, against fine-tuning and against online distillation.

All train the same student on the same batch of open text in the real training loop: a random model
of the default student's shape, 99 M parameters. Online, the teacher's forward pass is in the loop,
and the whole distributions are compared: a teacher of SmolLM2-360M's shape, 3.7 times the student
(the paper's 33 B are 4.7 times its 7 B), and for `kd_vs_online_small_teacher` one of the default
teacher's, 1.4 times. TRL's GKD trainer does the same with the larger one, and is null where the
extra `trl` is not installed. Prints one JSON line of ratios.

Run as  OMP_NUM_THREADS=2 python -m benchmarks.step
"""

import importlib.util
import json
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from firstkd.terms.distillation import DistillationLoss, Lessons
from firstkd.terms.settings import Arm
from torch import Tensor

from benchmarks.models import MACHINE, SETTINGS, larger_random_model, random_model
from firstkd.data.packing import Batch, pack
from firstkd.data.prompts import Question
from firstkd.models.scoring import ResponseScorer, cross_entropy
from firstkd.recalibration.temperature import Temperature
from firstkd.reproducibility import deterministic
from firstkd.signals.capture import capture, finish
from firstkd.signals.knowledge import KnowledgeStore
from firstkd.signals.settings import ExtractSettings
from firstkd.train.distributed import present_ranks
from firstkd.train.loop import Loss, train

QUESTIONS, PROMPT, RESPONSE = 8, 48, 48  # and tokens of each
STEPS = 4


def seconds_per_step(questions: list[Question], loss: Loss, folder: Path) -> float:
    """Seconds of the fastest step, as the training loop itself tells them."""
    live_curve = folder / "benchmark/curve.jsonl"
    plan = [list(range(QUESTIONS))] * STEPS
    train(random_model(20), questions, plan, loss, SETTINGS, MACHINE, live_curve)
    points = [json.loads(line) for line in live_curve.read_text().splitlines()]
    return min(point["step_tokens"] / point["tokens_per_second"] for point in points)


def first(questions: list[Question], teacher: Any, folder: Path) -> DistillationLoss:
    settings = ExtractSettings(
        top_k=5,
        tail_nodes=0,
        micro_batch_size=QUESTIONS,
        shard_examples=QUESTIONS,
        min_top_k_mass=0.0,
    )
    knowledge = folder / "knowledge"
    stores = capture(
        teacher, questions, settings, teacher.config.vocab_size, knowledge, present_ranks()
    )
    finish(knowledge, stores, identity={})
    return DistillationLoss(
        arm=Arm(recalibration="temperature", tokens=1.0),
        choices=None,
        tokens=Lessons(KnowledgeStore(folder / "knowledge/token"), Temperature(2.0)),
    )


def online(teacher: Any) -> Loss:
    """KL over the whole vocabulary from a teacher that is asked in every step."""
    asked = ResponseScorer(teacher).eval()

    def loss(scorer: Any, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            taught = asked.head.logits(asked.hidden(batch)).log_softmax(-1)
        student = scorer.module
        logprobs = F.linear(student.hidden(batch), student.head.weight).float().log_softmax(-1)
        return F.kl_div(logprobs, taught, log_target=True, reduction="batchmean"), {}

    return loss


def gkd_seconds(questions: list[Question], teacher: Any) -> float | None:
    """Seconds of the fastest step of TRL's GKD on the same tokens, its own loop left out.

    Without generation (lambda 0) and with forward KL (beta 0): what `online` does.
    """
    if importlib.util.find_spec("trl") is None:
        return None
    from trl.experimental.gkd import GKDTrainer

    ids = pack(questions, range(QUESTIONS)).input_ids_BL
    labels = ids.clone()
    labels[:, :PROMPT] = -100
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    # all of the trainer that its loss looks at
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
        distilling = seconds_per_step(questions, first(questions, teacher, folder), folder)
        others = {
            "kd_vs_finetune": seconds_per_step(questions, cross_entropy, folder),
            "kd_vs_online": seconds_per_step(questions, online(teacher), folder),
            "kd_vs_online_small_teacher": seconds_per_step(
                questions, online(small_teacher), folder
            ),
            "kd_vs_trl": gkd_seconds(questions, teacher),
        }
    found = {name: seconds and round(distilling / seconds, 3) for name, seconds in others.items()}
    print(json.dumps({**found, "kd_seconds": round(distilling, 2)}))


if __name__ == "__main__":
    main()
