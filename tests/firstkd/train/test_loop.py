import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from firstkd.errors import ConfigError, TrainingDivergedError
from firstkd.models.folders import load_model
from firstkd.models.scoring import cross_entropy
from firstkd.train.distributed import Ranks
from firstkd.train.engine import deepspeed_config
from firstkd.train.loop import learning_rate_at, train, training_plan
from tests.firstkd.train.trainings import (
    MACHINE,
    QUESTIONS,
    SETTINGS,
    SHARED,
    TRAININGS,
    changed,
    trained,
)
from tests.tiny import REPOSITORY


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
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
    assert sum(point["tokens"] for point in live) == 4 * sum(len(q.prompt) + 1 for q in QUESTIONS)


def test_accumulated_micro_batches_are_one_large_batch(tiny_model, tmp_path):
    _, whole = trained(tiny_model, tmp_path, epochs=1, micro_batch_size=40)
    _, parts = trained(
        tiny_model, tmp_path, epochs=1, micro_batch_size=10, micro_batches_per_step=4
    )
    assert whole[0]["loss"] == pytest.approx(parts[0]["loss"], rel=1e-5)
    assert whole[0]["gradient_norm"] == pytest.approx(parts[0]["gradient_norm"], rel=1e-4)


def test_the_curve_shows_the_losss_own_measures_as_means_of_micro_batches(tiny_model, tmp_path):
    settings = SETTINGS.model_copy(update={"micro_batches_per_step": 2})

    def loss(scorer, batch, progress):
        value, _ = cross_entropy(scorer, batch)
        first = batch.index_B[0].float()
        return value, {"first": first, **({"rare": first} if first > 1 else {})}

    model = load_model(tiny_model, "fp32")
    plan = [[1, 2], [3, 4], [5, 6], [7, 8]]
    curve = train(model, QUESTIONS, plan, loss, settings, MACHINE, tmp_path / "stage/curve.jsonl")
    assert [point["first"] for point in curve] == [2, 6]
    assert [point["rare"] for point in curve] == [3, 6]


def test_the_loss_is_told_the_share_of_the_steps_that_are_done(tiny_model, tmp_path):
    told = []

    def loss(scorer, batch, progress):
        told.append(progress)
        return cross_entropy(scorer, batch)

    settings = SETTINGS.model_copy(update={"micro_batches_per_step": 2})
    plan = [[i] for i in range(8)]
    model = load_model(tiny_model, "fp32")
    train(model, QUESTIONS, plan, loss, settings, MACHINE, tmp_path / "stage/curve.jsonl")
    assert told == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]


def test_divergence_stops_with_the_step_and_the_examples(tiny_model, tmp_path):
    model = load_model(tiny_model, "fp32")
    model.base_model.norm.weight.data[0] = torch.nan
    with pytest.raises(TrainingDivergedError, match=r"step 1: loss nan.* lower learning_rate"):
        train(
            model,
            QUESTIONS,
            [[0, 1]],
            cross_entropy,
            SETTINGS,
            MACHINE,
            tmp_path / "stage/curve.jsonl",
        )


def test_the_plan_takes_every_question_once_an_epoch():
    plan = training_plan(QUESTIONS, SETTINGS, seed=3)
    assert sorted(i for batch in plan for i in batch) == sorted(list(range(40)) * 4)


def test_the_learning_rate_rises_and_falls_to_zero():
    rates = [learning_rate_at(SETTINGS, step, 100) for step in range(100)]
    assert max(rates) == pytest.approx(1e-2)
    assert rates[0] < rates[5] < rates[9]
    assert rates[-1] < 1e-5


def test_fewer_micro_batches_than_a_step_needs_is_refused(tiny_model, tmp_path):
    with pytest.raises(ConfigError, match=r"micro_batches_per_step: 64, but .* only 20"):
        trained(tiny_model, tmp_path, micro_batches_per_step=64)


def test_micro_batches_of_other_sizes_still_make_one_large_batch(tiny_model, tmp_path):
    _, whole = trained(tiny_model, tmp_path, epochs=1, micro_batch_size=40)
    model = load_model(tiny_model, "fp32")
    plan = [list(range(25)), list(range(25, 35)), list(range(35, 40))]
    settings = SETTINGS.model_copy(update={"micro_batches_per_step": 3})
    parts = train(
        model, QUESTIONS, plan, cross_entropy, settings, MACHINE, tmp_path / "stage/curve.jsonl"
    )
    assert whole[0]["loss"] == pytest.approx(parts[0]["loss"], rel=1e-5)
    assert whole[0]["gradient_norm"] == pytest.approx(parts[0]["gradient_norm"], rel=1e-4)


def test_a_batch_keeps_to_its_budget_of_tokens_and_loses_nobody():
    settings = SETTINGS.model_copy(update={"micro_batch_size": 16, "micro_batch_tokens": 20})
    plan = training_plan(QUESTIONS, settings, seed=3)
    assert sorted(i for batch in plan for i in batch) == sorted(list(range(40)) * 4)
    sizes = [len(b) * max(len(QUESTIONS[i].prompt) + 1 for i in b) for b in plan]
    assert max(sizes) <= 20
    assert {len(batch) for batch in plan} > {4, 5}  # long questions in smaller batches


def test_a_question_beyond_the_budget_is_a_batch_of_its_own():
    settings = SETTINGS.model_copy(update={"micro_batch_tokens": 1, "epochs": 1})
    assert all(len(batch) == 1 for batch in training_plan(QUESTIONS, settings, seed=3))


def test_dropout_repeats(tiny_model, tmp_path):
    def with_dropout(name):
        model = load_model(tiny_model, "fp32")
        model.config.attention_dropout = 0.5
        for layer in model.base_model.layers:
            layer.self_attn.attention_dropout = 0.5
        torch.manual_seed(5)
        return train(
            model, QUESTIONS, [[0, 1], [2, 3]], cross_entropy, SETTINGS, MACHINE, tmp_path / name
        )

    curve = with_dropout("a/curve.jsonl")
    torch.rand(7)  # what else drew random numbers before is of no consequence
    assert with_dropout("b/curve.jsonl") == curve
    assert trained_without_dropout(tiny_model, tmp_path)[0]["loss"] != curve[0]["loss"]


def trained_without_dropout(tiny_model, tmp_path):
    model = load_model(tiny_model, "fp32")
    live = tmp_path / "stage/curve.jsonl"
    return train(model, QUESTIONS, [[0, 1], [2, 3]], cross_entropy, SETTINGS, MACHINE, live)


@pytest.fixture(scope="module")
def in_two_processes(tiny_model, tmp_path_factory):
    """Where the trainings of two processes lie, each in the folder of its name."""
    out = tmp_path_factory.mktemp("two")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "tests.firstkd.train.trainings", tiny_model, out, *TRAININGS]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def in_one_process(tiny_model, tmp_path_factory):
    """Curves of one process without sharding, per precision."""
    folder = tmp_path_factory.mktemp("one")
    return {
        precision: trained(tiny_model, folder, **SHARED, zero_stage=0, precision=precision)[1]
        for precision in ("fp32", "bf16")
    }


@pytest.mark.distributed
@pytest.mark.integration
@pytest.mark.parametrize("name", TRAININGS)
def test_two_processes_learn_what_one_does(in_two_processes, in_one_process, name):
    precision = TRAININGS[name].get("precision", "fp32")
    alone, shared = (
        in_one_process[precision],
        json.loads((in_two_processes / name / "curve.json").read_text()),
    )
    assert len(alone) == len(shared) == 20
    tolerance = 1e-3 if precision == "fp32" else 0.05
    for key in ("loss", "gradient_norm"):
        expected = pytest.approx([point[key] for point in alone], rel=tolerance)
        assert [point[key] for point in shared] == expected


@pytest.mark.distributed
@pytest.mark.integration
def test_what_zero_3_exports_is_what_transformers_alone_can_load(in_two_processes):
    whole = AutoModelForCausalLM.from_pretrained(in_two_processes / "zero_0").state_dict()
    sharded = AutoModelForCausalLM.from_pretrained(in_two_processes / "zero_3").state_dict()
    assert whole.keys() == sharded.keys()
    for name, weights in whole.items():
        torch.testing.assert_close(sharded[name], weights, rtol=1e-2, atol=1e-4)


def test_micro_batches_that_cannot_be_shared_out_are_refused(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("firstkd.train.loop.join_ranks", lambda: Ranks(0, 2))
    with pytest.raises(
        ConfigError, match=r"micro_batches_per_step: 1 .* 2 processes; set it to a multiple of 2"
    ):
        trained(tiny_model, tmp_path)


def test_the_settings_become_one_configuration():
    settings, machine = changed(zero_stage=3, cpu_offload=True, micro_batches_per_step=8)
    found = deepspeed_config(settings, machine, world_size=2)
    assert found["gradient_accumulation_steps"] == 4
    assert found["zero_optimization"]["stage"] == 3
    for offloaded in ("offload_param", "offload_optimizer"):
        assert found["zero_optimization"][offloaded]["device"] == "cpu"
    assert json.loads(json.dumps(found)) == found


def test_a_step_of_one_micro_batch_needs_no_sharding():
    settings, machine = changed(precision="bf16", zero_stage=0)
    assert deepspeed_config(settings, machine, world_size=1)["zero_optimization"]["stage"] == 0


@pytest.mark.slow
def test_memory_that_runs_out_names_the_settings_to_lower(tiny_model, tmp_path):
    script = f"""
import resource
from pathlib import Path
from firstkd.data.prompts import Question
from tests.firstkd.train.trainings import trained
long = [Question(str(i), [4] * 500, [[50]], 0) for i in range(100)]
in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + 2**29, in_use + 2**29))
trained(Path({str(tiny_model)!r}), Path({str(tmp_path)!r}), questions=long,
        micro_batch_size=100, micro_batch_tokens=10**6)
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert "OutOfMemoryError: memory ran out with a micro-batch of 100 × 501 tokens" in done.stderr
    assert "lower micro_batch_size or micro_batch_tokens" in done.stderr
