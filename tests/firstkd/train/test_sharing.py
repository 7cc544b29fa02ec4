"""Terms that share nothing but the objective: two processes learn what one does, in every stage."""

import json
import os
import subprocess
import sys
from statistics import fmean

import pytest

from tests.firstkd.train.sharing import NAMES, STAGES, TRAININGS
from tests.tiny import REPOSITORY

TERMS = {
    "all": (*NAMES, "states"),
    "on_policy": ("tokens",),
    "adapting": ("focal", "focal_gamma", "tokens_probability"),
}


@pytest.fixture(scope="module")
def in_two_processes(tiny_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "tests.firstkd.train.sharing", tiny_model, out]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.distributed
@pytest.mark.integration
@pytest.mark.parametrize("name", TRAININGS)
def test_two_processes_learn_what_one_does(in_two_processes, tiny_model, tmp_path, name):
    _, alone = TRAININGS[name](tiny_model, tmp_path / "one", 1)
    losses = [point["loss"] for point in alone]
    third = len(losses) // 3  # single steps are of other questions, and of other text
    assert third >= 2 and fmean(losses[-third:]) < fmean(losses[:third])
    for stage in STAGES[name]:
        shared = json.loads((in_two_processes / f"{name}-{stage}/curve.json").read_text())
        for key in ("loss", "gradient_norm", *TERMS[name]):
            expected = pytest.approx([point[key] for point in alone], rel=1e-3, abs=1e-6)
            assert [point[key] for point in shared] == expected, (stage, key)
