"""What the training engine costs over a bare PyTorch loop and gains over the Hugging Face Trainer.

All fine-tune the same random model of the default student's shape on the same questions, as long as
CommonsenseQA's, with fused AdamW, in bfloat16 with float32 master weights, or in float32 if the
machine computes in that. The bare loop gets the engine's own batches and loss; the Trainer pads the
questions as they come and computes all logits, as it usually does. The second of two epochs is
timed, in tokens without padding; for the engine and the bare loop, which take turns, the faster of
two runs counts. Prints one JSON line.

Run as  OMP_NUM_THREADS=2 python -m benchmarks.train [--tiny]
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.models import DEVICE, FINE_TUNING, MACHINE, PRECISION, SETTINGS, random_model
from firstkd.data.packing import pack, packed_length
from firstkd.data.prompts import Question
from firstkd.reproducibility import deterministic
from firstkd.train.loop import train
from firstkd.train.plan import training_plan
from firstkd.train.player import Player

BATCH = 32


def questions_of_many_lengths(count: int) -> list[Question]:
    draw = random.Random(0)

    def tokens(low: int, high: int) -> list[int]:
        return [draw.randrange(3, 49_152) for _ in range(draw.randint(low, high))]

    return [Question(str(i), tokens(12, 60), [tokens(1, 6)], 0) for i in range(count)]


def engine_seconds(model: Any, questions: Sequence[Question], plan: Any, settings: Any) -> float:
    with tempfile.TemporaryDirectory() as folder:
        live_curve = Path(folder) / "benchmark/curve.jsonl"
        player = Player(model, FINE_TUNING, {})
        train(player, questions, plan, settings, MACHINE, live_curve)
        points = [json.loads(line) for line in live_curve.read_text().splitlines()]
    second = points[len(points) // 2 :]
    return sum(point["step_tokens"] / point["tokens_per_second"] for point in second)


def bare_seconds(model: Any, questions: Sequence[Question], plan: Any) -> float:
    player = Player(model, FINE_TUNING, {}).train()
    weights = list(player.parameters())
    masters = [weight.detach().float() for weight in weights]
    optimizer = torch.optim.AdamW(masters, lr=1e-5, betas=(0.9, 0.95), fused=True)
    started = 0.0
    for step, index in enumerate(plan):
        if step == len(plan) // 2:
            started = time.monotonic()
        found = player(pack(questions, index).to(DEVICE), {})["gold"]
        loss = found.total / found.units
        loss.backward()
        for weight, master in zip(weights, masters, strict=True):
            master.grad = weight.grad.float()  # type: ignore[union-attr]
            weight.grad = None
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        for weight, master in zip(weights, masters, strict=True):
            weight.data.copy_(master)
        loss.item()
    return time.monotonic() - started


class SecondEpoch(TrainerCallback):
    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self.started = time.monotonic()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.monotonic() - self.started


def padded(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    length = max(len(row["input_ids"]) for row in rows)
    filled = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {
        name: torch.tensor([row[name] + [fill] * (length - len(row[name])) for row in rows])
        for name, fill in filled.items()
    }


def trainer_seconds(model: Any, questions: Sequence[Question]) -> float:
    rows: Any = [
        {
            "input_ids": q.prompt + q.responses[0],
            "attention_mask": [1] * packed_length(q),
            "labels": [-100] * len(q.prompt) + q.responses[0],
        }
        for q in questions
    ]
    timer = SecondEpoch()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, num_train_epochs=2, per_device_train_batch_size=BATCH, learning_rate=1e-5,
            bf16=PRECISION == "bf16", optim="adamw_torch_fused", save_strategy="no", report_to=[],
            logging_steps=1, disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        trainer = Trainer(
            model.float(), arguments, padded, train_dataset=rows, callbacks=[timer]
        )  # float32 weights, and PRECISION in the passes
        trainer.train()
    return timer.seconds


def measure(what: str, layers: int, steps: int) -> float:
    """Return the seconds of the second epoch."""
    deterministic(seed=0, threads=torch.get_num_threads())
    questions = questions_of_many_lengths(steps * BATCH)
    model = random_model(layers)
    if what == "trainer":
        return trainer_seconds(model, questions)
    settings = SETTINGS.model_copy(update={"epochs": 2, "micro_batch_size": BATCH})
    plan = training_plan(questions, settings, seed=0)
    if what == "bare":
        return bare_seconds(model, questions, plan)
    return engine_seconds(model, questions, plan, settings)


def in_own_process(what: str, layers: int, steps: int) -> float:
    command = [sys.executable, "-m", "benchmarks.train", what, str(layers), str(steps)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def main(layers: int, steps: int) -> None:
    tokens = sum(map(packed_length, questions_of_many_lengths(steps * BATCH)))
    best: dict[str, float] = {}
    for what in ("engine", "bare", "trainer", "engine", "bare"):
        seconds = in_own_process(what, layers, steps)
        best[what] = min(seconds, best.get(what, seconds))
    found = {
        "engine_vs_bare": round(best["bare"] / best["engine"], 3),
        "engine_vs_trainer": round(best["trainer"] / best["engine"], 3),
        "engine_tokens_per_second": round(tokens / best["engine"]),
    }
    print(json.dumps({"precision": PRECISION, **found}))


if __name__ == "__main__":
    if len(sys.argv) == 4:
        print(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
    else:
        tiny = "--tiny" in sys.argv
        main(layers=1 if tiny else 20, steps=2 if tiny else 8)
