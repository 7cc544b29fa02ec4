"""SLURM: a controller and two nodes, all on this machine, as root."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.firstkd.launchers.remote import check_two_hosts, start

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

CONFIGURATION = """
ClusterName=firstkd
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/controller.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
MpiDefault=none
MailProg=/bin/true
SlurmdParameters=config_overrides
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]}
NodeName={host}-second NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]}
PartitionName=all Nodes=ALL Default=YES
"""
PROGRAMS = ("munged", "slurmctld", "slurmd", "srun")


def free_ports(count: int) -> list[int]:
    found = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in found]
    for server in found:
        server.close()
    return ports


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield the configuration of a cluster of two nodes."""
    if not all(map(shutil.which, PROGRAMS)) or os.geteuid() != 0:
        pytest.skip("SLURM is not installed (Debian: slurm-wlm), or this is not root")
    folder = tmp_path_factory.mktemp("slurm")
    configuration = folder / "slurm.conf"
    text = CONFIGURATION.format(host=socket.gethostname(), folder=folder, ports=free_ports(3))
    configuration.write_text(text)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    files = {"key-file": "key", "socket": "socket", "seed-file": "seed", "pid-file": "pid"}
    options = [f"--{option}={folder}/munge.{name}" for option, name in files.items()]
    environment = {**os.environ, "SLURM_CONF": str(configuration)}
    commands = [
        ["munged", "--force", "--foreground", *options],
        ["slurmctld", "-D", "-i"],
        *(
            ["slurmd", "-D", "-N", node]
            for node in (socket.gethostname(), f"{socket.gethostname()}-second")
        ),
    ]
    running = []
    with (folder / "said").open("w") as said:
        for command in commands:
            running.append(subprocess.Popen(command, env=environment, stdout=said, stderr=said))
            time.sleep(1)
        try:
            wait_for_nodes(environment)
            yield configuration
        finally:
            for process in reversed(running):
                process.terminate()
                process.wait()


def wait_for_nodes(environment: dict[str, str]) -> None:
    deadline = time.monotonic() + 60
    idle = ["sinfo", "--noheader", "--states=idle", "--format=%D"]
    while True:
        done = subprocess.run(idle, env=environment, capture_output=True, text=True)
        if done.stdout.strip() == "2":
            return
        assert time.monotonic() < deadline, done.stdout + done.stderr
        time.sleep(0.5)


def test_two_nodes_meet_fail_and_stop_together(cluster, tmp_path):
    launcher = json.dumps({"kind": "slurm", "hosts": 2, "port": free_ports(1)[0]})
    check_two_hosts(launcher, tmp_path, SLURM_CONF=str(cluster))


def test_an_allocation_that_is_refused_is_one_line(cluster, tmp_path):
    launcher = json.dumps({"kind": "slurm", "hosts": 2, "options": ["--partition=none"]})
    process = start(launcher, tmp_path, "meet", SLURM_CONF=str(cluster))
    _, said = process.communicate()
    assert process.returncode == 1 and "Traceback" not in said
    assert said.splitlines()[-1].startswith("srun ended with exit code 1: srun: error: ")
