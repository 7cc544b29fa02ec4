"""The settings of launchers, and what they start: hosts and SLURM are in tests/tasks/."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import kubernetes_validate
import pytest
from pydantic import TypeAdapter, ValidationError

from firstkd.errors import ConfigError
from firstkd.files import write_json
from firstkd.launchers.base import Job
from firstkd.launchers.host import passed_on
from firstkd.launchers.kinds import AnyLauncher
from firstkd.launchers.torchrun import RankError
from firstkd.train.settings import MachineSettings
from tests.tiny import REPOSITORY

JOB = Job("tasks.model", ["teacher"], 8, 4, 300.0, Path("logs/model-teacher"))
KUBERNETES = {"kind": "kubernetes", "hosts": 3, "pod": REPOSITORY / "infra/kubernetes.yaml"}


def made(**settings):
    return TypeAdapter(AnyLauncher).validate_python(settings)


def test_no_token_is_passed_on_to_other_hosts(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_HOME", "/models")
    monkeypatch.setenv("FIRSTKD_TEACHER_KEY", "sk-secret")
    found = passed_on()
    assert found["HF_HOME"] == "/models"
    assert not {"hf_secret", "sk-secret"} & set(found.values())


def test_a_step_is_shared_out_among_the_processes_of_all_hosts():
    settings = {"zero_stage": 0, "cpu_offload": False, "gradient_checkpointing": False}
    settings |= {"checkpoint_steps": None, "processes": 4}
    alone = MachineSettings.model_validate(settings)
    assert alone.all_processes == 4 and alone.launcher.kind == "local"
    launcher = {"kind": "hosts", "hosts": ["a", "b", "c"]}
    assert MachineSettings.model_validate({**settings, "launcher": launcher}).all_processes == 12


@pytest.mark.parametrize("reach", ["ssh {host}", "ssh a {command}", "ssh {host} sh-c={command}"])
def test_a_way_that_does_not_say_where_the_command_goes_is_refused(reach):
    with pytest.raises(
        ValidationError, match=r"needs \{host\}, and \{command\} as a separate word"
    ):
        made(kind="hosts", hosts=["a"], reach=reach)


def test_each_host_gets_one_word_that_a_shell_understands(tmp_path, monkeypatch):
    folder = tmp_path / "it's here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("NCCL_DEBUG", "a b")
    monkeypatch.setenv("SECRET", "s")
    hosts = made(kind="hosts", hosts=["a", "me@b"], reach="there -p 1 {host} {command}")
    first, second = hosts.commands(JOB, Path("launch"))
    assert first.command[:-1] == ["there", "-p", "1", "a"] and first.hosts == range(0, 1)
    *_, line = second.command
    assert second.command[3] == "me@b" and "SECRET" not in line
    shown = line.replace("exec env", "env").replace(sys.executable, "env #")
    said = subprocess.run(["sh", "-c", shown + "\npwd"], capture_output=True, text=True)
    found = dict(text.split("=", 1) for text in said.stdout.splitlines() if "=" in text)
    assert found["NCCL_DEBUG"] == "a b" and found["PET_MASTER_ADDR"] == "a"
    assert (found["PET_NODE_RANK"], found["PET_NNODES"]) == ("1", "2")
    assert said.stdout.splitlines()[-1] == str(folder)


def test_the_kubernetes_job_is_as_kubernetes_wants_it():
    service, job = made(**KUBERNETES).manifest(JOB, "firstkd-1a2b")["items"]
    for found in (service, job):
        kubernetes_validate.validate(found, "1.32", strict=True)
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 3
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    container = pod["containers"][0]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    *shell, line = container["command"]
    assert shell == ["sh", "-c"] and line.endswith(" python -m tasks.model teacher")
    assert "PET_NODE_RANK=$JOB_COMPLETION_INDEX " in line
    assert "PET_MASTER_ADDR=firstkd-1a2b-0.firstkd-1a2b " in line


def test_a_file_that_is_no_pod_is_named(tmp_path):
    for text, reason in ((None, "there is no "), ("kind: Pod", "is not a PodTemplate")):
        file = tmp_path / "pod.yaml"
        if text:
            file.write_text(text)
        with pytest.raises(ConfigError, match=rf"machine\.launcher\.pod: .*{reason}"):
            made(**{**KUBERNETES, "pod": file}).manifest(JOB, "firstkd-1a2b")


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
def test_without_a_cluster_kubectl_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    write_json(tmp_path / "job.json", made(**KUBERNETES).manifest(JOB, "firstkd-1a2b"))
    command = [sys.executable, "-m", "firstkd.launchers.pods", str(tmp_path / "job.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode and "Traceback" not in done.stderr
    assert "refused" in done.stderr.splitlines()[-1]


def test_a_program_that_is_not_here_is_named(tmp_path):
    hosts = made(kind="hosts", hosts=["a"], reach="not-installed {host} {command}")
    with pytest.raises(
        RankError, match=r"not-installed is not installed here, so host a cannot be reached"
    ):
        hosts.launch(replace(JOB, logs=tmp_path))
    assert not (tmp_path / "hosts").exists()
