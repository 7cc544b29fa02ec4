import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from firstkd.data.packing import pack
from firstkd.data.prompts import Question
from firstkd.errors import ConfigError, TrainingDivergedError
from firstkd.models.folders import load_model
from firstkd.terms.base import Ramp
from firstkd.terms.gold import Gold
from firstkd.terms.gold_choice import GoldChoice
from firstkd.train.distributed import Ranks
from firstkd.train.engine import deepspeed_config
from firstkd.train.loop import train
from firstkd.train.plan import training_plan
from firstkd.train.player import Player
from firstkd.train.schedule import COSINE, learning_rate_at
from firstkd.train.settings import TrainingSettings
from tests.firstkd.train.trainings import (
    GOLD,
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
    assert sum(point["step_tokens"] for point in live) == 4 * sum(
        len(q.prompt) + 1 for q in QUESTIONS
    )


@pytest.fixture(scope="module")
def opinionated_model(tiny_model, tmp_path_factory):
    """The tiny model with large embeddings, to which some tokens are far likelier than others."""
    folder = tmp_path_factory.mktemp("opinionated")
    model = load_model(tiny_model, "fp32")
    model.get_input_embeddings().weight.data.mul_(30)  # the head's, too
    model.save_pretrained(folder)
    return folder


LENGTHS = [1 if i < 20 else 50 for i in range(32)]
UNEQUAL = [
    Question(str(i), [4, i % 7], [[50 + (i + t) % 30 for t in range(length)]], 0)
    for i, length in enumerate(LENGTHS)
]
MIXED = [
    question
    if i % 8 < 5
    else Question(question.id, [5, 6], [[7], [8, 9], [10]][: 2 + i % 2], i % 2)
    for i, question in enumerate(UNEQUAL)
]
"""Open text, and questions with two or three choices."""
BOTH = {"gold": Gold(kind="gold"), "choices": GoldChoice(kind="gold_choice", weight=0.5)}


@pytest.mark.parametrize(("questions", "learn"), [(UNEQUAL, GOLD), (MIXED, BOTH)])
def test_accumulated_micro_batches_are_one_large_batch(
    opinionated_model, tmp_path, questions, learn
):
    def first_step(*sizes):
        plan, start = [], 0
        for size in sizes:
            plan.append([*range(start, start + size)])
            start += size
        changes = {"micro_batch_size": 32, "micro_batches_per_step": len(sizes)}
        _, (point,) = trained(
            opinionated_model, tmp_path, questions=questions, learn=learn, plan=plan, **changes
        )
        return {name: pytest.approx(value, rel=1e-4) for name, value in point.items()}

    whole = first_step(32)
    assert first_step(8, 8, 8, 8) == first_step(5, 20, 3, 4) == whole
    assert whole.keys() >= learn.keys()


def test_a_mean_of_micro_batch_means_would_be_another_loss(opinionated_model):
    """Which is why the test above can fail: short responses would count more."""
    player = Player(load_model(opinionated_model, "fp32"), GOLD, {})
    sums = [player(pack(UNEQUAL, [*range(i, i + 8)]), {})["gold"] for i in range(0, 32, 8)]
    mean = sum(each.total for each in sums) / sum(each.units for each in sums)
    of_means = sum(each.total / each.units for each in sums) / len(sums)
    assert abs(of_means / mean - 1) > 0.02


def test_measures_are_per_unit_of_the_whole_step(tiny_model, tmp_path):
    plan = [[*range(20)], [*range(20, 27)], [*range(27, 32)]]  # of unequal numbers of choices
    _, (point,) = trained(
        tiny_model, tmp_path, questions=MIXED, learn=BOTH, plan=plan, micro_batches_per_step=3
    )
    player = Player(load_model(tiny_model, "fp32"), BOTH, {})
    one_by_one = [player(pack(MIXED, [i]), {})["choices"] for i in range(32)]
    assert sum(each.units for each in one_by_one) == 12
    agreeing = sum(float(each.measures["agreement"]) for each in one_by_one)
    assert point["choices_agreement"] == pytest.approx(agreeing / 12)
    assert "gold_agreement" not in point


def test_a_ramp_weighs_by_the_share_of_the_steps_that_are_done(tiny_model, tmp_path):
    falling = {"gold": Gold(kind="gold", weight=Ramp(**{"from": 0.5, "to": 0}))}
    plan = [[i] for i in range(8)]
    _, curve = trained(tiny_model, tmp_path, learn=falling, plan=plan, micro_batches_per_step=2)
    weights = [point["loss"] / point["gold"] for point in curve]
    assert weights == pytest.approx([0.5, 0.375, 0.25, 0.125])
    _, constant = trained(tiny_model, tmp_path, plan=plan, micro_batches_per_step=2)
    assert curve[0]["gold"] == constant[0]["gold"]
    assert curve[0]["gradient_norm"] == pytest.approx(constant[0]["gradient_norm"] / 2, rel=1e-4)


def test_a_term_of_weight_0_is_measured_and_teaches_nothing(tiny_model, tmp_path):
    silent = {**GOLD, "tokens": Gold(kind="gold", weight=0.0)}
    model, curve = trained(tiny_model, tmp_path, learn=silent, epochs=1)
    alone, expected = trained(tiny_model, tmp_path, epochs=1)
    assert [point["tokens"] for point in curve] == [point["gold"] for point in curve]
    assert [point["loss"] for point in curve] == [point["loss"] for point in expected]
    for found, weights in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.equal(found, weights)


def test_divergence_stops_with_the_step_and_the_examples(tiny_model, tmp_path):
    model = load_model(tiny_model, "fp32")
    model.base_model.norm.weight.data[0] = torch.nan
    with pytest.raises(TrainingDivergedError, match=r"step 1: loss nan.* lower learning_rate"):
        train_in(tmp_path / "stage", model, [[0, 1]])


def test_the_plan_takes_every_question_once_an_epoch():
    plan = training_plan(QUESTIONS, SETTINGS, seed=3)
    assert sorted(i for batch in plan for i in batch) == sorted(list(range(40)) * 4)


def test_the_learning_rate_rises_and_falls_to_zero():
    rates = [learning_rate_at(SETTINGS, step, 100) for step in range(100)]
    assert max(rates) == pytest.approx(1e-2)
    assert rates[0] < rates[5] < rates[9]
    assert rates[-1] < 1e-5


def test_wsd_is_constant_and_falls_at_the_end():
    wsd = TrainingSettings.model_validate(
        SETTINGS.model_dump() | {"schedule": {"kind": "wsd", "decay": 0.25}}
    )
    rates = [learning_rate_at(wsd, step, 100) for step in range(100)]
    assert rates[:10] == [learning_rate_at(SETTINGS, step, 100) for step in range(10)]
    assert rates[10:76] == [1e-2] * 66
    assert rates[75:] == pytest.approx([1e-2 * (25 - i) / 25 for i in range(25)])


def test_another_order_shuffles_otherwise_and_none_is_the_first():
    plans = [training_plan(QUESTIONS, SETTINGS, 1, order=order) for order in range(3)]
    assert plans[0] == training_plan(QUESTIONS, SETTINGS, 1)
    assert plans[0] != plans[1] != plans[2] != plans[0]
    assert len({len(plan) for plan in plans}) == 1


@pytest.mark.parametrize("per_step", [1, 2])
def test_the_decay_sees_the_data_sets_that_it_names_alone(per_step):
    few = {3, 8, 21, 34}
    sources = ["few" if i in few else "many" for i in range(40)]
    schedule = {"kind": "wsd", "decay": 0.3, "data": ["few"]}
    changes = {"epochs": 3, "micro_batch_size": 2, "micro_batches_per_step": per_step}
    settings = TrainingSettings.model_validate(
        SETTINGS.model_dump() | changes | {"schedule": schedule}
    )
    usual = training_plan(QUESTIONS, settings.model_copy(update={"schedule": COSINE}), seed=1)
    plan = training_plan(QUESTIONS, settings, 1, sources)
    steps = len(plan) // per_step
    rates = [learning_rate_at(settings, step, steps) for step in range(steps)]
    falls = next(n for n in range(1, steps) if rates[n] < rates[n - 1]) * per_step
    assert len(plan) == len(usual) and plan[: falls - per_step] == usual[: falls - per_step]
    last = plan[falls:]
    assert {i for batch in last for i in batch} == few
    seen = [i for batch in last for i in batch]
    assert max(map(seen.count, few)) - min(map(seen.count, few)) <= 1
    with pytest.raises(ConfigError, match=r"schedule.data: few has no questions"):
        training_plan(QUESTIONS, settings, 1, ["many"] * 40)


def test_a_decay_that_begins_in_the_warm_up_is_refused():
    schedule = {"schedule": {"kind": "wsd", "decay": 0.95}}
    with pytest.raises(
        ValueError, match=r"schedule\.decay: 0\.95 and warmup_ratio: 0\.1 add up to more"
    ):
        TrainingSettings.model_validate(SETTINGS.model_dump() | schedule)


def test_fewer_micro_batches_than_a_step_needs_is_refused(tiny_model, tmp_path):
    with pytest.raises(ConfigError, match=r"micro_batches_per_step: 64, but .* only 20"):
        trained(tiny_model, tmp_path, micro_batches_per_step=64)


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


def train_in(folder, model, plan):
    player = Player(model, GOLD, {})
    return train(player, QUESTIONS, plan, SETTINGS, MACHINE, folder / "curve.jsonl")


def test_dropout_repeats(tiny_model, tmp_path):
    def with_dropout(share):
        model = load_model(tiny_model, "fp32")
        model.config.attention_dropout = share
        for layer in model.base_model.layers:
            layer.self_attn.attention_dropout = share
        torch.manual_seed(5)
        return train_in(tmp_path / "stage", model, [[0, 1], [2, 3]])

    curve = with_dropout(0.5)
    torch.rand(7)  # what else drew random numbers before is of no consequence
    assert with_dropout(0.5) == curve
    assert with_dropout(0.0)[0]["loss"] != curve[0]["loss"]


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
