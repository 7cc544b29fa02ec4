"""The engine's steps against PyTorch's own AdamW on float32 weights."""

import pytest
import torch

from firstkd.data.packing import pack
from firstkd.models.folders import load_model
from firstkd.train.loop import learning_rate_at
from firstkd.train.player import Player
from tests.firstkd.train.trainings import GOLD, QUESTIONS, changed, trained

PLAN = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_steps_are_those_of_adamw(tiny_model, tmp_path, precision, zero_stage):
    changes = {"precision": precision, "zero_stage": zero_stage, "weight_decay": 0.5}
    model, _ = trained(tiny_model, tmp_path, plan=PLAN, **changes)
    reference = with_adamw(tiny_model, changed(**changes)[0])
    for found, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-5)


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
