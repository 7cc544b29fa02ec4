"""One training loop for teacher and student, under DeepSpeed ZeRO.

The loop counts optimizer steps. Each takes `gradient_accumulation_steps` micro-batches from a
plan that the seed fixes in advance.
"""

import json
import logging
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._C._distributed_c10d import HashStore
from tqdm import tqdm
from transformers import PreTrainedModel

from firstkd.errors import ConfigError, TrainingDivergedError
from firstkd.imports import unimportable
from firstkd.packing import Batch, pack, shuffled_batches
from firstkd.prompts import Question
from firstkd.scoring import ResponseScorer
from firstkd.settings import TrainingSettings

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it looks for others, and says so
with unimportable("mlflow"):  # seconds, for an autotuner that nobody uses
    import deepspeed

deepspeed.utils.logger.setLevel(logging.WARNING)

Loss = Callable[[ResponseScorer, Batch], tuple[Tensor, dict[str, Tensor]]]
"""From the model and a batch to the mean loss of its questions, and what else is to be shown."""


def train(
    model: PreTrainedModel,
    questions: Sequence[Question],
    plan: Sequence[Sequence[int]],
    loss: Loss,
    settings: TrainingSettings,
    live_curve: Path,
) -> list[dict[str, float]]:
    """Train `model` in place and return its curve: step, loss, learning rate, gradient norm, and
    the loss's own measures as means over the micro-batches that have them.

    `plan` is every micro-batch in order, as indices of questions (`training_plan`).

    The curve with speeds is appended to `live_curve` as it grows, one JSON object per line.
    Raises TrainingDivergedError at the first step whose loss or gradient is not finite.
    """
    accumulation = settings.gradient_accumulation_steps
    steps = len(plan) // accumulation
    if not steps:
        raise ConfigError(
            f"gradient_accumulation_steps: {accumulation}, but all epochs have only "
            f"{len(plan)} micro-batches: not one step"
        )
    engine = _engine(model, settings)
    curve: list[dict[str, float]] = []
    live_curve.parent.mkdir(parents=True, exist_ok=True)
    with (
        live_curve.open("w", encoding="utf-8", buffering=1) as live,
        tqdm(total=steps, desc=f"training {live_curve.parent.name}", unit="step") as progress,
    ):
        for step in range(steps):
            started = time.monotonic()
            learning_rate = _set_learning_rate(engine, settings, step, steps)
            indices = plan[step * accumulation : (step + 1) * accumulation]
            tokens, value = 0, 0.0
            measured: defaultdict[str, list[float]] = defaultdict(list)
            for index in indices:
                batch = pack(questions, index).to(engine.device)
                batch_loss, measures = loss(engine, batch)
                engine.backward(batch_loss)
                value += batch_loss.item() / accumulation
                for name, measure in measures.items():
                    measured[name].append(measure.item())
                tokens += batch.tokens
                engine.step()
            norm = float(engine.get_global_grad_norm())
            _check_finite(value, norm, step, learning_rate, questions, indices)
            point = {
                "step": step + 1,
                "loss": value,
                "learning_rate": learning_rate,
                "gradient_norm": norm,
                **{name: fmean(values) for name, values in measured.items()},
            }
            curve.append(point)
            speed = tokens / (time.monotonic() - started)
            live.write(json.dumps({**point, "tokens": tokens, "tokens_per_second": speed}) + "\n")
            progress.set_postfix(loss=f"{value:.3f}", tokens_per_s=f"{speed:.0f}")
            progress.update()
    engine.destroy()
    return curve


def training_plan(
    questions: Sequence[Question], settings: TrainingSettings, seed: int
) -> list[list[int]]:
    """Every micro-batch of all epochs, as indices; `train` drops a last incomplete step."""
    generator = np.random.default_rng(seed)
    plan = [
        batch
        for _ in range(settings.epochs)
        for batch in shuffled_batches(questions, settings.micro_batch_size, generator)
    ]
    return plan


def learning_rate_at(settings: TrainingSettings, step: int, steps: int) -> float:
    """Linear warm-up over `warmup_ratio` of the steps, then a cosine to 0."""
    warmup = settings.warmup_ratio * steps
    if step < warmup:
        return settings.learning_rate * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1.0, steps - warmup)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


BUCKET_ELEMENTS = 2**25
"""Of gradients at a time. The default of 5·10⁸ takes gigabytes, anew in every step: a second."""


def deepspeed_config(settings: TrainingSettings) -> dict[str, Any]:
    """Return DeepSpeed's own configuration.

    Without any ZeRO stage it tells no gradient norm in float32, so there stage 1 takes the place
    of 0; in one process it computes the same.
    """
    stage = max(settings.zero_stage, int(settings.precision == "fp32"))
    return {
        "train_micro_batch_size_per_gpu": settings.micro_batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "gradient_clipping": settings.gradient_clipping,
        "bf16": {"enabled": settings.precision == "bf16"},
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "allgather_bucket_size": BUCKET_ELEMENTS,
        },
        "steps_per_print": 10**9,
    }


def _engine(model: PreTrainedModel, settings: TrainingSettings) -> Any:
    _join_process_group()
    scorer = ResponseScorer(model).train()
    # weights learn to be small; norms and biases (vectors) have no reason to
    matrices = [p for p in scorer.parameters() if p.ndim >= 2]
    vectors = [p for p in scorer.parameters() if p.ndim < 2]
    # fused: one pass over the weights, 5 × faster on CPU than the default
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    engine, *_ = deepspeed.initialize(
        model=scorer, optimizer=optimizer, config=deepspeed_config(settings)
    )
    return engine


def _join_process_group() -> None:
    """DeepSpeed wants a process group, even of one."""
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        os.environ.setdefault(name, value)
    if (world_size := os.environ["WORLD_SIZE"]) != "1":
        raise ConfigError(f"WORLD_SIZE is {world_size}, but training runs in one process")
    # Shared memory between ranks: of no use to one, and building it hangs for ever on the lock
    # file of an earlier process that was killed while it built.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not torch.distributed.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        store = HashStore()
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)


def _set_learning_rate(engine: Any, settings: TrainingSettings, step: int, steps: int) -> float:
    learning_rate = learning_rate_at(settings, step, steps)
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate
    return learning_rate


def _check_finite(
    loss: float,
    norm: float,
    step: int,
    learning_rate: float,
    questions: Sequence[Question],
    indices: Sequence[Sequence[int]],
) -> None:
    if math.isfinite(loss) and math.isfinite(norm):
        return
    ids = [questions[i].id for index in indices for i in index]
    raise TrainingDivergedError(
        f"step {step + 1}: loss {loss}, gradient norm {norm} at learning rate "
        f"{learning_rate:.3g}; lower learning_rate or look at the examples {', '.join(ids)}"
    )
