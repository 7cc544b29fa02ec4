"""Training on two hosts that the stage starts itself: two network namespaces with a cable between.

They share this machine's file system, as hosts share the project's folder; everything else that
they say to each other crosses the cable.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstkd.errors import PipelineError
from firstkd.files import sha256_of
from tests.tasks.trainings import SECONDS_TO_END, Project, copy_of, result, write_inputs

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    write_inputs(root)
    return root


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[str]]:
    names = [f"firstkd-{os.getpid()}-{number}" for number in (0, 1)]

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True)

    if not shutil.which("ip") or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    for name in names:
        ip("netns", "add", name)
    try:
        ip("link", "add", "eth0", "netns", names[0], "type", "veth",
           "peer", "name", "eth0", "netns", names[1])  # fmt: skip
        for number, name in enumerate(names, start=1):
            ip("-n", name, "address", "add", f"10.123.0.{number}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            ip("netns", "del", name)


@pytest.fixture
def project(inputs: Path, hosts: list[str], tmp_path: Path) -> Project:
    found = copy_of(inputs, tmp_path / "project")
    found.change(launcher=launcher(hosts))
    return found


def launcher(hosts: list[str], reach: str = "ip netns exec {host} sh -c {command}") -> object:
    return {"kind": "hosts", "hosts": hosts, "reach": reach, "address": "10.123.0.1"}


@pytest.fixture(scope="module")
def two_processes(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """What two processes on one host make."""
    alone = copy_of(inputs, tmp_path_factory.mktemp("undisturbed"))
    alone.change(processes=2)
    alone.run()
    return alone


def test_two_hosts_are_as_two_processes(project, two_processes):
    assert project.run() == result(two_processes)
    assert not (project.root / "logs/model-teacher/hosts").exists()


def test_two_hosts_capture_and_measure_a_shared_model_as_two_processes(project, two_processes):
    shutil.copytree(two_processes.root / "data/model/teacher", project.root / "data/model/teacher")
    for each in (project, two_processes):
        each.change(placement={"kind": "sharded"})
        each.run_stage("signal", "choices")
        each.run_stage("evaluate", "teacher")
    for made in ("data/signal/choices", "data/evaluate/teacher"):
        assert sha256_of(project.root / made) == sha256_of(two_processes.root / made)


def test_sigterm_saves_the_step_on_all_hosts(project, two_processes):
    project.change(checkpoint_steps=None)
    process = project.start()
    project.reach(process, lambda: project.steps_done() >= 12)
    process.terminate()
    _, said = process.communicate(timeout=SECONDS_TO_END)
    assert process.returncode == 128 + signal.SIGTERM
    (saved,) = project.checkpoints()
    assert saved == f"step-{project.steps_done():08d}" and "checkpoint saved" in said
    assert project.run() == result(two_processes)


def processes_of(project: Project) -> set[int]:
    """Return whatever runs in a project's folder."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() == project.root:
                found.add(int(process.name))
        except OSError:  # it is gone, or not ours
            continue
    return found


def test_a_killed_launcher_takes_all_hosts_along(project, two_processes):
    process = project.start()
    project.reach(process, lambda: project.steps_done() >= 12)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + SECONDS_TO_END
    while processes_of(project):
        assert time.monotonic() < deadline, "something hangs"
        time.sleep(0.1)
    assert project.run() == result(two_processes)


def test_a_rank_that_is_killed_is_named_with_its_host(project):
    process = project.start()
    project.reach(process, lambda: project.steps_done() >= 12)
    ranks = [pid for pid in processes_of(project) if b"\0RANK=1\0" in environment(pid)]
    for rank in ranks:
        os.kill(rank, signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.splitlines()[-1].startswith("rank 1 on ") and "was killed (SIGKILL)" in said
    assert "Traceback" not in said


def environment(pid: int) -> bytes:
    return b"\0" + Path(f"/proc/{pid}/environ").read_bytes()


def test_the_error_of_one_host_is_the_one_line_that_is_shown(project):
    project.change(micro_batches_per_step=1)
    process = project.start()
    _, said = process.communicate(timeout=100)
    assert process.returncode == PipelineError.exit_code
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("model: micro_batches_per_step: 1 cannot be shared out")


OF_ITS_OWN = """
if [ "$1" = HOST ]; then
    exec ip netns exec "$1" sh -c "mount --bind ELSEWHERE PROJECT && $2"
fi
exec ip netns exec "$1" sh -c "$2"
"""
"""Reaches two hosts, of which one has a folder of its own in the place of the project's."""


def test_a_host_without_the_projects_folder_says_so(project, hosts, tmp_path):
    elsewhere, script = tmp_path / "elsewhere", tmp_path / "reach"
    shutil.copytree(project.root, elsewhere)
    text = OF_ITS_OWN.replace("HOST", hosts[1]).replace("ELSEWHERE", str(elsewhere))
    script.write_text(text.replace("PROJECT", str(project.root)))
    reach = f"sh {script} {{host}} {{command}}"
    project.change(launcher=launcher(hosts, reach))
    shutil.copy(project.root / "params.yaml", elsewhere)
    process = project.start()
    _, said = process.communicate(timeout=100)
    assert process.returncode == 1
    last = said.splitlines()[-1]
    assert last.startswith(f"host {hosts[1]} ended with exit code 2: model: ")
    assert f"{project.root} is not the project's folder" in last


def test_a_host_that_is_not_there_says_so(project, hosts):
    project.change(launcher=launcher([hosts[0], "nowhere"]))
    process = project.start()
    _, said = process.communicate(timeout=100)
    assert "host nowhere ended with exit code" in said.splitlines()[-1]
    assert "Cannot open network namespace" in said.splitlines()[-1]
