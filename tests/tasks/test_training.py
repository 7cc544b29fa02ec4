"""Training as real processes: killed, stopped, resumed; in one process and several."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from firstkd.errors import PipelineError
from firstkd.files import read_json_lines
from tests.tasks.trainings import (
    SECONDS_TO_END,
    Project,
    children,
    copy_of,
    result,
    wait_until_gone,
    write_inputs,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    write_inputs(root)
    return root


@pytest.fixture
def project(inputs: Path, tmp_path: Path) -> Project:
    return copy_of(inputs, tmp_path / "project")


@pytest.fixture(scope="module")
def undisturbed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Project]:
    """What trainings that nothing disturbs have made, by their number of processes."""
    found = {}
    for processes in (1, 2):
        found[processes] = copy_of(inputs, tmp_path_factory.mktemp("undisturbed"))
        found[processes].change(processes=processes)
        found[processes].run()
    return found


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_five_times_it_ends_with_the_same_bytes(project, undisturbed, processes):
    project.change(processes=processes)
    steps = len(read_json_lines(undisturbed[1].root / "data/model/teacher/training.jsonl"))
    seed = random.randrange(2**32)
    print(f"the moments are of seed {seed}")  # shown when the test fails
    draw = random.Random(seed)
    for moment in sorted(draw.sample(range(steps - 1), 5)):
        process = project.start()
        project.reach(process, lambda moment=moment: project.steps_done() > moment)
        time.sleep(draw.random() * 0.05)  # somewhere in the step, or in saving
        ranks = children(process.pid)
        for pid in (process.pid, *(ranks if processes > 1 else [])):
            os.kill(pid, signal.SIGKILL)
        process.communicate()
        wait_until_gone(ranks)
        assert not (project.root / "data/model/teacher").exists()
    assert project.run() == result(undisturbed[processes])


def test_two_models_that_learn_from_one_another_are_killed_and_end_with_the_same_bytes(
    inputs, tmp_path
):
    projects = [copy_of(inputs, tmp_path / name) for name in ("whole", "killed")]
    for project in projects:
        project.models = "left-right"
        add_two_that_learn_from_one_another(project.root)
        project.change(epochs=2)
    whole, killed = projects
    whole.run()
    assert not (killed.root / "data/model/left").exists()
    for moment in (3, 11):
        process = killed.start()
        killed.reach(process, lambda moment=moment: killed.steps_done() > moment)
        process.kill()
        process.communicate()
        assert not (killed.root / "data/model/left").exists()
    assert killed.run() == result(whole)
    for name, term in (("left", "right"), ("right", "gold")):
        curve = read_json_lines(killed.root / f"data/model/{name}/training.jsonl")
        assert curve[0].keys() >= {"loss", "other", term} and not any(
            "." in key for key in curve[0]
        )


def add_two_that_learn_from_one_another(root: Path) -> None:
    yaml = YAML()
    params = yaml.load(root / "params.yaml")
    for name, own, other in (("left", {"right": {"kind": "gold_choice"}}, "right"),
                             ("right", {"gold": {}}, "left")):  # fmt: skip
        learned = {"kind": "choice_kl", "from": f"of_{other}", "recalibrate": "none"}
        params["models"][name] = {
            "init": {"kind": "copy", "of": "base"},
            "train": "finetune",
            "learn": {**own, "other": learned},
        }
        params["signals"][f"of_{name}"] = {"kind": "choices", "of": name, "live": True}
    yaml.dump(params, root / "params.yaml")


def test_two_processes_learn_what_one_does(undisturbed):
    curves = [
        read_json_lines(undisturbed[n].root / "data/model/teacher/training.jsonl") for n in (1, 2)
    ]
    for alone, shared in zip(*curves, strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-3)


def test_a_killed_rank_ends_all_and_is_named(project, undisturbed):
    project.change(processes=2)
    process = project.start()
    project.reach(process, lambda: project.steps_done() >= 12)
    ranks = children(process.pid)
    os.kill(ranks[1], signal.SIGKILL)
    started = time.monotonic()
    _, said = process.communicate(timeout=SECONDS_TO_END)
    assert time.monotonic() - started < SECONDS_TO_END
    assert process.returncode == 1
    assert "was killed (SIGKILL) and the others ended" in said
    assert "Traceback" not in said
    wait_until_gone(ranks)
    assert project.run() == result(undisturbed[2])


def test_a_killed_launcher_takes_its_ranks_along(project, undisturbed):
    project.change(processes=2)
    process = project.start()
    project.reach(process, lambda: project.steps_done() >= 12)
    ranks = children(process.pid)
    assert len(ranks) >= 2
    process.kill()
    wait_until_gone(ranks)
    process.communicate()
    assert project.run() == result(undisturbed[2])


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_saves_the_step_it_comes_in(project, undisturbed, processes):
    project.change(processes=processes, checkpoint_steps=None)
    process = project.start()
    project.reach(process, lambda: project.steps_done() >= 12)
    process.terminate()
    _, said = process.communicate(timeout=SECONDS_TO_END)
    assert process.returncode == 128 + signal.SIGTERM
    (saved,) = project.checkpoints()
    done = int(saved.removeprefix("step-"))
    assert f"stopped after step {done} of" in said
    assert project.steps_done() == done
    assert project.run() == result(undisturbed[processes])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"processes": 2}, {"processes": 1}),
        ({"zero_stage": 0}, {"zero_stage": 2, "gradient_checkpointing": True}),
        ({"zero_stage": 1}, {"zero_stage": 3, "cpu_offload": True}),
    ],
)
def test_a_training_resumes_under_other_settings_of_the_machine(
    project, undisturbed, before, after
):
    project.change(**before, checkpoint_steps=None)
    process = project.start()
    project.reach(process, lambda: project.steps_done() >= 12)
    process.terminate()
    process.communicate(timeout=SECONDS_TO_END)
    project.change(**after)
    process = project.start()
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert "resuming after step" in said
    expected = read_json_lines(undisturbed[1].root / "data/model/teacher/training.jsonl")
    found = read_json_lines(project.root / "data/model/teacher/training.jsonl")
    for alone, changed in zip(expected, found, strict=True):
        assert changed["loss"] == pytest.approx(alone["loss"], rel=1e-3)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(project, undisturbed):
    project.change(processes=2)
    process = project.start()
    project.reach(process, lambda: project.checkpoints() == ["step-00000005", "step-00000010"])
    ranks = children(process.pid)
    process.kill()
    process.communicate()
    wait_until_gone(ranks)  # they save the step that they are in
    *_, newest = sorted(project.root.glob("data/.train/*/step-*/rank-0.safetensors"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    process = project.start()
    _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert "damaged checkpoint; using the one before it" in said
    assert "resuming after step" in said
    assert result(project) == result(undisturbed[2])


def test_a_changed_setting_begins_anew(project):
    process = project.start()
    project.reach(process, lambda: len(project.checkpoints()) == 2)
    process.kill()
    process.communicate()
    (stale,) = project.root.glob("data/.train/*")
    project.change(learning_rate=2e-4, epochs=1)
    process = project.start()
    _, said = process.communicate()
    assert process.returncode == 0
    assert "resuming" not in said
    assert not stale.exists()


def test_the_error_of_a_rank_is_the_one_line_that_is_shown(project):
    project.change(processes=2, micro_batches_per_step=1)
    process = project.start()
    _, said = process.communicate()
    assert process.returncode == PipelineError.exit_code
    line = said.splitlines()[-1]
    assert "Traceback" not in said
    assert line.startswith("model: micro_batches_per_step: 1 cannot be shared out evenly")


def test_a_disk_that_fills_up_leaves_the_checkpoints_before(project, undisturbed):
    project.change(processes=2)
    disk = project.root / "data/.train"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o"]
    # two checkpoints fit, a third does not
    if subprocess.run([*mount, "size=1000k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        process = project.start()
        _, said = process.communicate(timeout=100)
        assert process.returncode == PipelineError.exit_code
        line = said.splitlines()[-1]
        assert "Traceback" not in said
        assert line.startswith("model: cannot write") and "o space left" in line
        assert project.checkpoints() == ["step-00000005", "step-00000010"]
        subprocess.run([*mount, "remount,size=100m", "tmpfs", disk], check=True)
        process = project.start()
        _, said = process.communicate()
        assert process.returncode == 0, said
        assert "resuming after step 10" in said
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
    assert result(project) == result(undisturbed[2])


def test_lora_is_merged_into_an_ordinary_model(project):
    from transformers import AutoModelForCausalLM

    project.change(lora={"rank": 4, "alpha": 8}, epochs=2, learning_rate=1e-2)
    project.run()
    curve = read_json_lines(project.root / "data/model/teacher/training.jsonl")
    assert curve[-1]["loss"] < curve[0]["loss"]
    before = AutoModelForCausalLM.from_pretrained(project.root / "data/model/base").state_dict()
    after = AutoModelForCausalLM.from_pretrained(project.root / "data/model/teacher").state_dict()
    assert before.keys() == after.keys()
    changed = {n for n in before if not before[n].bfloat16().equal(after[n].bfloat16())}
    assert changed == {n for n in before if "_proj" in n}
    config = json.loads((project.root / "logs/model-teacher/deepspeed.json").read_text())
    assert config["gradient_clipping"] == 1.0
