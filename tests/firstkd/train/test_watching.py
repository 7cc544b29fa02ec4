"""Trainings beside a frozen teacher, with projectors and discriminators that are trained, saved and
thrown away."""

import json
import os
import signal
import subprocess
import sys
from functools import partial

import pytest
import torch
from safetensors import safe_open

from firstkd.errors import ConfigError
from firstkd.terms.adversarial import Adversarial
from firstkd.terms.hidden import Hidden
from tests.firstkd.train.trainings import SHARED, trained
from tests.firstkd.train.watching import adversarial, hidden, relating, watching
from tests.tiny import REPOSITORY


def same(first, second):
    assert first[1] == second[1]
    for a, b in zip(first[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("zero_stage", [1, 3])
@pytest.mark.parametrize(("made", "kind"), [(hidden, Hidden), (adversarial, Adversarial)])
def test_what_is_trained_beside_is_saved_and_goes_on_bit_for_bit(
    tiny_model, tmp_path, zero_stage, made, kind
):
    calls = []

    class Interrupted(kind):
        def __call__(self, view, name, target):
            calls.append(name)
            if len(calls) == 7:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__call__(view, name, target)

    def training(out, checkpoints=None, kind=kind):
        player = partial(watching, term=made(kind))
        return trained(tiny_model, out, checkpoints, player=player, zero_stage=zero_stage)

    undisturbed = training(tmp_path)
    checkpoints = tmp_path / "checkpoints"
    with pytest.raises(SystemExit):
        training(tmp_path, checkpoints, Interrupted)
    with safe_open(checkpoints / "step-00000007/rank-0.safetensors", "pt") as saved:
        keys = [*saved.keys()]
    assert any("beside.0.1." in key and "|exp_avg" in key for key in keys)
    same(undisturbed, training(tmp_path, checkpoints))
    of_states = [point["states"] for point in undisturbed[1]]
    if kind is Hidden:
        assert of_states[-1] < 0.8 * of_states[0]


@pytest.mark.parametrize("made", [hidden, adversarial])
def test_the_student_is_saved_without_what_was_trained_beside_it(tiny_model, tmp_path, made):
    model, _ = trained(tiny_model, tmp_path, player=partial(watching, term=made()))
    model.save_pretrained(tmp_path / "student")
    with safe_open(tmp_path / "student/model.safetensors", "pt") as saved:
        kept = {*saved.keys()}
    with safe_open(tiny_model / "model.safetensors", "pt") as saved:
        assert kept == {*saved.keys()}


def test_accumulated_micro_batches_are_one_large_batch(tiny_model, tmp_path):
    whole, parts = [[*range(8)]], [[0, 1, 2], [3], [4, 5, 6, 7], []][:3]
    _, large = trained(tiny_model, tmp_path, plan=whole, player=watching)
    _, small = trained(tiny_model, tmp_path, plan=parts, player=watching, micro_batches_per_step=3)
    for key in ("loss", "states", "gradient_norm"):
        assert small[0][key] == pytest.approx(large[0][key], rel=1e-5)


def test_layers_that_are_computed_again_show_no_states(tiny_model, tmp_path):
    with pytest.raises(ConfigError, match=r"machine\.gradient_checkpointing: hidden"):
        trained(tiny_model, tmp_path, player=watching, gradient_checkpointing=True)


@pytest.mark.distributed
@pytest.mark.integration
def test_two_processes_learn_what_one_does(tiny_model, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "tests.firstkd.train.watching"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [*command, tiny_model, tmp_path, "1", "3"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    _, alone = trained(tiny_model, tmp_path / "one", player=relating, **SHARED, zero_stage=1)
    for stage in ("1", "3"):
        shared = json.loads((tmp_path / stage / "curve.json").read_text())
        for key in ("loss", "states", "angles", "gradient_norm"):
            expected = pytest.approx([point[key] for point in alone], rel=1e-3)
            assert [point[key] for point in shared] == expected
