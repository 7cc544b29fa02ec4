"""What the training benchmarks share: settings, and random models of known shape."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from firstkd.models.folders import device, precision_here
from firstkd.settings import load_settings
from firstkd.terms.gold import Gold
from firstkd.train.settings import MachineSettings, TrainingSettings

PRECISION = precision_here("auto")
DTYPE = {"bf16": torch.bfloat16, "fp32": torch.float32}[PRECISION]
"""As this machine would train: ratios in one precision say little about the other."""
SETTINGS = TrainingSettings(
    epochs=1,
    learning_rate=1e-5,
    micro_batch_size=8,
    micro_batch_tokens=1_000_000,
    micro_batches_per_step=1,
    warmup_ratio=0.0,
    weight_decay=0.0,
    gradient_clipping=1.0,
    precision="auto",
)
CAPTURE = load_settings(Path(__file__).parents[1] / "params.yaml").capture
FINE_TUNING = {"gold": Gold(kind="gold")}
MACHINE = MachineSettings(
    processes=1,
    zero_stage=0,
    cpu_offload=False,
    gradient_checkpointing=False,
    checkpoint_steps=None,
)


DEVICE = device()
ATTENTION = "eager" if DEVICE.type == "cpu" else "sdpa"
"""As models are loaded here."""


def random_model(layers: int, attention: str = ATTENTION, dtype: torch.dtype = DTYPE) -> Any:
    """Return a random model of SmolLM2-135M's shape with this many layers (it has 30)."""
    return _random(layers, heads=9, attention=attention).to(DEVICE, dtype)


def larger_random_model() -> Any:
    """Return a random model of SmolLM2-360M's shape: the same vocabulary, wider layers."""
    return _random(layers=32, heads=15, attention=ATTENTION).to(DEVICE, DTYPE)


def seconds_of(task: Callable[[], Any]) -> float:
    """Return how long a task takes, including the work that it leaves to the GPU."""
    wait_for_gpu()
    started = time.perf_counter()
    task()
    wait_for_gpu()
    return time.perf_counter() - started


def wait_for_gpu() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def peak_growth_mb(task: Callable[[], Any]) -> float:
    """Return by how many MB a task raises the GPU's peak memory or, without one, this process's."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        task()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forget the peak so far
    before_mb = memory_mb("VmRSS")
    task()
    return memory_mb("VmHWM") - before_mb


def memory_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def _random(layers: int, heads: int, attention: str) -> Any:
    config = LlamaConfig(
        vocab_size=49_152, hidden_size=64 * heads, intermediate_size=512 * heads // 3,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads // 3,
        tie_word_embeddings=True, attn_implementation=attention,
    )  # fmt: skip
    return LlamaForCausalLM(config)
