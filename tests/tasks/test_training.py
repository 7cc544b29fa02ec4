"""Training as real processes: killed, stopped, resumed; one, several, and on two node ranks."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from firstkd.errors import PipelineError
from firstkd.files import read_json_lines, sha256_of
from firstkd.settings import load_settings
from firstkd.train.settings import MachineSettings
from tasks import prepare
from tasks.graph import write_graph
from tests.tiny import REPOSITORY, write_tiny_model, write_tiny_params, write_tiny_questions

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

OF_A_RANK = {"RANK", "LOCAL_RANK", "WORLD_SIZE"}
"""What a training within the tests' own process leaves in its environment."""
SECONDS_TO_END = 20
"""Within which nothing of a training is left when a part of it was killed."""


@dataclass
class Project:
    root: Path
    models: str = "teacher"
    """Or those that are trained together, as the stage names them."""

    def start(self, *, host: Sequence[str] = (), **environment: str) -> subprocess.Popen[str]:
        outside = {name: value for name, value in os.environ.items() if name not in OF_A_RANK}
        return subprocess.Popen(
            [*host, sys.executable, "-m", "tasks.model", self.models],
            cwd=self.root,
            env={**outside, "PYTHONPATH": str(REPOSITORY), **environment},
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, **environment: str) -> str:
        """Run the stage to its end; return what it wrote and its hash."""
        process = self.start(**environment)
        _, said = process.communicate()
        assert process.returncode == 0, said[-3000:]
        assert not list((self.root / "data/.train").glob("*"))
        return result(self)

    def change(self, **settings: object) -> None:
        yaml = YAML()
        params = yaml.load(self.root / "params.yaml")
        for key, value in settings.items():
            of_machine = key in MachineSettings.model_fields
            section = params["machine"] if of_machine else params["train"]["finetune"]
            section[key] = value
        yaml.dump(params, self.root / "params.yaml")
        write_graph(self.root, load_settings(self.root / "params.yaml"))

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in self.root.glob("data/.train/*/step-*"))

    def steps_done(self) -> int:
        curve = self.root / f"logs/model-{self.models}/curve.jsonl"
        return len(curve.read_text().splitlines()) if curve.exists() else 0

    def reach(self, process: subprocess.Popen[str], condition: Callable[[], object]) -> None:
        while not condition():
            assert process.poll() is None, "it ended before it could be disturbed"
            time.sleep(0.001)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    write_tiny_params(root)
    write_tiny_model(root / "data/model/base")
    for name, seed in (("questions", 1), ("elsewhere", 2)):
        write_tiny_questions(root / f"data/fetch/{name}.jsonl", 80, seed)
    prepare.main(root)
    return root


def copy_of(inputs: Path, root: Path) -> Project:
    root.mkdir(exist_ok=True)
    shutil.copytree(inputs / "data", root / "data")
    shutil.copy(inputs / "params.yaml", root)
    project = Project(root)
    project.change(
        epochs=5, micro_batch_size=2, micro_batches_per_step=2, checkpoint_steps=5, processes=1,
        learning_rate=1e-4,
    )  # fmt: skip
    return project


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


def result(project: Project) -> str:
    names = project.models.split("-")
    return " ".join(sha256_of(project.root / "data/model" / name) for name in names)


def children(pid: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + SECONDS_TO_END
    while not all(map(is_gone, pids)):
        assert time.monotonic() < deadline, "something hangs"
        time.sleep(0.05)


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
    assert "going on after step" in said
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
    assert "damaged checkpoint, the one before is taken" in said
    assert "going on after step" in said
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
    assert "going on" not in said
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
        assert "going on after step 10" in said
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
    assert result(project) == result(undisturbed[2])


@pytest.fixture
def two_hosts() -> Iterator[dict[str, list[str]]]:
    """The address of each host, and what runs a command there: namespaces, and a cable between."""
    names = [f"firstkd-{os.getpid()}-{number}" for number in (0, 1)]
    addresses = ["10.123.0.1", "10.123.0.2"]

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True)

    if not shutil.which("ip") or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    for name in names:
        ip("netns", "add", name)
    try:
        ip("link", "add", "eth0", "netns", names[0], "type", "veth",
           "peer", "name", "eth0", "netns", names[1])  # fmt: skip
        for name, address in zip(names, addresses, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", name, "link", "set", device, "up")
        yield {a: ["ip", "netns", "exec", n] for n, a in zip(names, addresses, strict=True)}
    finally:
        for name in names:
            ip("netns", "del", name)


def test_two_hosts_are_as_two_processes(project, undisturbed, two_hosts):
    rendezvous = {
        "PET_NNODES": "2",
        "PET_RDZV_BACKEND": "c10d",
        "PET_RDZV_ENDPOINT": f"{next(iter(two_hosts))}:29400",
        "PET_RDZV_ID": "test",
        "GLOO_SOCKET_IFNAME": "eth0",
    }
    nodes = [
        project.start(
            host=host,
            **rendezvous,
            PET_NODE_RANK=str(rank),
            PET_LOCAL_ADDR=address,
            PET_RDZV_CONF=f"is_host={int(rank == 0)}",  # no name of theirs has an address here
        )
        for rank, (address, host) in enumerate(two_hosts.items())
    ]
    for node in nodes:
        _, said = node.communicate(timeout=200)
        assert node.returncode == 0, said
    assert result(project) == result(undisturbed[2])


def test_two_node_ranks_are_as_two_processes(project, undisturbed):
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    rendezvous = {
        "PET_NNODES": "2",
        "PET_RDZV_BACKEND": "c10d",
        "PET_RDZV_ENDPOINT": f"127.0.0.1:{port}",
        "PET_RDZV_ID": "test",
    }
    nodes = [project.start(**rendezvous, PET_NODE_RANK=str(node)) for node in (0, 1)]
    for node in nodes:
        _, said = node.communicate()
        assert node.returncode == 0, said
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


def test_a_host_that_nobody_answers_says_so(project):
    nobody = {
        "PET_NNODES": "2",
        "PET_RDZV_BACKEND": "c10d",
        "PET_RDZV_ENDPOINT": "127.0.0.1:9",
        "PET_RDZV_CONF": "is_host=0,timeout=1,read_timeout=1",
        "PET_RDZV_ID": "test",
        "PET_NODE_RANK": "1",
    }
    _, said = (process := project.start(**nobody)).communicate(timeout=100)
    assert process.returncode == PipelineError.exit_code
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("model: the hosts did not find each other")
