"""The engine's steps against PyTorch's own AdamW on float32 weights."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from firstkd.data.packing import pack
from firstkd.models.folders import load_model
from firstkd.train.player import Player
from firstkd.train.schedule import learning_rate_at
from tests.firstkd.train import trainings
from tests.firstkd.train.trainings import GOLD, QUESTIONS, changed, trained
from tests.tiny import REPOSITORY

PLAN = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_steps_are_those_of_adamw(tiny_model, tmp_path, precision, zero_stage):
    changes = {"precision": precision, "zero_stage": zero_stage, "weight_decay": 0.5}
    model, _ = trained(tiny_model, tmp_path, plan=PLAN, **changes)
    reference = with_adamw(tiny_model, changed(**changes)[0])
    for found, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-5)


STAGES = [
    {"zero_stage": 0},
    {"zero_stage": 1},
    {"zero_stage": 1, "cpu_offload": True},
    {"zero_stage": 2},
    {"zero_stage": 2, "cpu_offload": True},
    {"zero_stage": 2, "gradient_checkpointing": True},
    {"zero_stage": 3},
    {"zero_stage": 3, "cpu_offload": True},
    {"zero_stage": 3, "gradient_checkpointing": True},
]


@pytest.mark.parametrize("machine", STAGES, ids=str)
def test_bfloat16_gradients_of_micro_batches_are_summed_in_float32(tiny_model, tmp_path, machine):
    found = first_gradient(tiny_model, tmp_path, 8, 4, **machine)
    player = Player(load_model(tiny_model, "bf16"), GOLD, {}).train()
    expected = {name: torch.zeros(weight.shape) for name, weight in player.named_parameters()}
    if machine["zero_stage"] == 0:
        # what a weight gets as embedding and as head is not rounded either, before it is added up
        for weight in player.parameters():
            weight.grad_dtype = torch.float32
    for index in range(8):
        player.zero_grad()
        sums = player(pack(QUESTIONS, range(4 * index, 4 * index + 4)), {})
        (sums["gold"].total / 32).backward()
        for name, weight in player.named_parameters():
            expected[name] += weight.grad.float()
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient.flatten(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("machine", STAGES, ids=str)
def test_in_bfloat16_four_times_eight_is_once_thirty_two(tiny_model, tmp_path, machine):
    """But for the rounding of each micro-batch's own gradient: 2⁻⁹ of an element at most."""
    once = first_gradient(tiny_model, tmp_path / "once", 1, 32, **machine)
    parts = first_gradient(tiny_model, tmp_path / "parts", 4, 8, **machine)
    once, parts = (torch.cat([g[name] for name in sorted(g)]) for g in (once, parts))
    assert (once - parts).norm() < 0.003 * once.norm()


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_model_loaded_in_parts_is_trained_as_a_whole_one(
    tiny_model, tmp_path, precision, monkeypatch
):
    changes = {"zero_stage": 3, "precision": precision, "weight_decay": 0.5}
    shared, curve = trained(tiny_model, tmp_path, **changes)
    monkeypatch.setattr(
        trainings, "load_to_train", lambda folder, *_: load_model(folder, precision)
    )
    whole, expected = trained(tiny_model, tmp_path, **changes)
    assert curve == expected
    assert all(map(torch.equal, shared.parameters(), whole.parameters()))


@pytest.mark.distributed
@pytest.mark.slow
def test_no_process_of_zero_3_holds_the_whole_model(tiny_model, tmp_path):
    """Half of the weights each, and up to three copies of the one that is being shared out."""
    config = LlamaConfig(
        vocab_size=4096, hidden_size=1024, intermediate_size=2816, num_hidden_layers=12,
        num_attention_heads=16, tie_word_embeddings=True, dtype="bfloat16",
    )  # fmt: skip
    model = LlamaForCausalLM(config).bfloat16()
    model.save_pretrained(tmp_path / "model")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"]
    paths = [tmp_path / "model", tiny_model, tmp_path]
    command = [*torchrun, "tests.firstkd.train.loading", *paths]
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "MALLOC_MMAP_THRESHOLD_": "65536",  # or glibc keeps what is freed: 0.1 to 0.2 of the model
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    size = sum(weight.nbytes for weight in model.parameters())
    peaks = [int((tmp_path / f"peak-{rank}").read_text()) / size for rank in (0, 1)]
    assert max(peaks) <= 0.6
    gathered = load_file(tmp_path / "gathered.safetensors")
    assert gathered.keys() == dict(model.named_parameters()).keys()
    for name, weight in model.named_parameters():
        assert torch.equal(gathered[name], weight)


def first_gradient(tiny_model, folder, micro_batches, size, **machine):
    """Return one step's gradient by weight, flat: ten times Adam's first moment."""
    plan = [list(range(size * n, size * n + size)) for n in range(micro_batches)]
    changes = {"precision": "bf16", "micro_batches_per_step": micro_batches, **machine}
    trained(
        tiny_model, folder, folder / "saved", plan=plan, gradient_clipping=1e9,
        checkpoint_steps=1, **changes,
    )  # fmt: skip
    with safe_open(folder / "saved/step-00000001/rank-0.safetensors", "pt") as file:
        pieces = [(key.split("|"), file.get_tensor(key)) for key in file.keys()]  # noqa: SIM118
    return {name: moment * 10 for (name, kind, _), moment in pieces if kind == "exp_avg"}


def with_adamw(tiny_model, settings):
    model = load_model(tiny_model, settings.precision)
    player = Player(model, GOLD, {}).train()
    weights = list(model.parameters())
    masters = [weight.detach().float().clone() for weight in weights]
    groups = [
        {"params": [m for m in masters if m.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [m for m in masters if m.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    for step, index in enumerate(PLAN):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(settings, step, len(PLAN))
        found = player(pack(QUESTIONS, index), {})["gold"]
        (found.total / found.units).backward()
        for weight, master in zip(weights, masters, strict=True):
            master.grad, weight.grad = weight.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, settings.gradient_clipping)
        optimizer.step()
        for weight, master in zip(weights, masters, strict=True):
            weight.data.copy_(master)
    return model
