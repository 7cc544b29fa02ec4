import json

import numpy as np
import pytest
import torch

from firstkd.errors import ConfigError, TrainingDivergedError
from firstkd.models import load_model
from firstkd.prompts import Question
from firstkd.reproducibility import deterministic
from firstkd.scoring import cross_entropy
from firstkd.settings import TrainingSettings
from firstkd.training import learning_rate_at, train, training_plan

SETTINGS = TrainingSettings(
    epochs=4,
    learning_rate=1e-2,
    micro_batch_size=8,
    gradient_accumulation_steps=1,
    warmup_ratio=0.1,
    weight_decay=0.01,
    gradient_clipping=1.0,
    precision="fp32",
    zero_stage=1,
)
# what follows is decided by the prompt's last token
QUESTIONS = [Question(str(i), [4, i % 7, 10 + i % 5], [[50 + i % 5]], 0) for i in range(40)]


def trained(tiny_model, tmp_path, **changes):
    deterministic(seed=1, threads=1)
    settings = SETTINGS.model_copy(update=changes)
    model = load_model(tiny_model, settings.precision)
    plan = training_plan(QUESTIONS, settings, seed=1)
    live = tmp_path / "stage/curve.jsonl"
    curve = train(model, QUESTIONS, plan, cross_entropy, settings, live)
    return model, curve


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_every_zero_stage_learns(tiny_model, tmp_path, zero_stage, precision):
    model, curve = trained(tiny_model, tmp_path, zero_stage=zero_stage, precision=precision)
    losses = [point["loss"] for point in curve]
    assert np.mean(losses[-4:]) < 0.5 * np.mean(losses[:4])
    assert all(torch.isfinite(p).all() and p.numel() > 0 for p in model.parameters())


def test_training_repeats_bit_for_bit(tiny_model, tmp_path):
    first, curve = trained(tiny_model, tmp_path)
    second, again = trained(tiny_model, tmp_path)
    assert curve == again
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_live_curve_is_the_curve_with_speeds(tiny_model, tmp_path):
    _, curve = trained(tiny_model, tmp_path)
    live = [json.loads(line) for line in (tmp_path / "stage/curve.jsonl").read_text().splitlines()]
    assert [point["loss"] for point in live] == [point["loss"] for point in curve]
    assert all(point["tokens_per_second"] > 0 for point in live)
    assert live[0]["tokens"] == 8 * 4


def test_accumulated_micro_batches_are_one_large_batch(tiny_model, tmp_path):
    _, whole = trained(tiny_model, tmp_path, epochs=1, micro_batch_size=40)
    _, parts = trained(
        tiny_model, tmp_path, epochs=1, micro_batch_size=10, gradient_accumulation_steps=4
    )
    assert whole[0]["loss"] == pytest.approx(parts[0]["loss"], rel=1e-5)
    assert whole[0]["gradient_norm"] == pytest.approx(parts[0]["gradient_norm"], rel=1e-4)


def test_the_curve_shows_the_losss_own_measures_as_means_of_micro_batches(tiny_model, tmp_path):
    settings = SETTINGS.model_copy(update={"gradient_accumulation_steps": 2})

    def loss(scorer, batch):
        value, _ = cross_entropy(scorer, batch)
        first = batch.index_B[0].float()
        return value, {"first": first, **({"rare": first} if first > 1 else {})}

    model = load_model(tiny_model, "fp32")
    plan = [[1, 2], [3, 4], [5, 6], [7, 8]]
    curve = train(model, QUESTIONS, plan, loss, settings, tmp_path / "stage/curve.jsonl")
    assert [point["first"] for point in curve] == [2, 6]
    assert [point["rare"] for point in curve] == [3, 6]


def test_divergence_stops_with_the_step_and_the_examples(tiny_model, tmp_path):
    model = load_model(tiny_model, "fp32")
    model.base_model.norm.weight.data[0] = torch.nan
    with pytest.raises(TrainingDivergedError, match=r"step 1: loss nan.* lower learning_rate"):
        train(model, QUESTIONS, [[0, 1]], cross_entropy, SETTINGS, tmp_path / "stage/curve.jsonl")


def test_the_plan_takes_every_question_once_an_epoch():
    plan = training_plan(QUESTIONS, SETTINGS, seed=3)
    assert sorted(i for batch in plan for i in batch) == sorted(list(range(40)) * 4)


def test_the_learning_rate_rises_and_falls_to_zero():
    rates = [learning_rate_at(SETTINGS, step, 100) for step in range(100)]
    assert max(rates) == pytest.approx(1e-2)
    assert rates[0] < rates[5] < rates[9]
    assert rates[-1] < 1e-5


def test_fewer_micro_batches_than_a_step_needs_is_refused(tiny_model, tmp_path):
    with pytest.raises(ConfigError, match=r"gradient_accumulation_steps: 64, but .* only 20"):
        trained(tiny_model, tmp_path, gradient_accumulation_steps=64)
