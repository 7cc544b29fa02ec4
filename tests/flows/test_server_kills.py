"""SIGKILL of a worker, of its whole machine's processes and of PostgreSQL, as in test_kills.py.

All of MLflow's and Prefect's state is in PostgreSQL, and a worker runs the retraining.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from flows.workspace import Workspace
from tests.flows.projects import REPOSITORY, change, is_alive
from tests.flows.test_kills import Running, assert_as_undisturbed, champion, make_slow
from tests.servers import Server, Servers, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]


@pytest.fixture
def running(project: Workspace, servers: Servers, request: pytest.FixtureRequest) -> Running:
    """The project with its first champion, a better student to train, and its deployment."""
    root = project.root
    make_slow(root)
    shutil.copy(REPOSITORY / "prefect.yaml", root)
    environment = {**os.environ, **servers.client}
    environment |= {"PYTHONPATH": str(REPOSITORY), "PWD": str(root)}
    name = re.sub(r"\W", "_", request.node.name)
    found = Running(root, environment, model=name, experiment=name)
    change(root, "record", "registered_model", found.model)
    change(root, "record", "experiment", found.experiment)
    found.run()
    change(root, "train.distill", "epochs", 5)
    change(root, "retrain", "retry_delay_seconds", 0)
    prefect(found, "work-pool", "create", "firstkd", "--type", "process", "--overwrite")
    prefect(found, "deploy", "--all")
    return found


def prefect(running: Running, *arguments: str) -> str:
    done = subprocess.run(
        [*PREFECT, *arguments],
        cwd=running.root,
        env=running.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def worker(running: Running) -> Iterator[Server]:
    log = running.root / "worker.log"
    command = [*PREFECT, "worker", "start", "--pool", "firstkd"]
    found = Server(command, running.environment, log, lambda: "started!" in log.read_text())
    found.start()
    yield found
    found.stop()


def in_the_middle(running: Running) -> int:
    """Let the worker start a run, wait for the stage that trains; return its process id."""
    (running.root / "slow").touch()
    prefect(running, "deployment", "run", "retrain/weekly")
    wait_for((running.root / "pid").exists, 180)
    time.sleep(0.2)  # until the number is whole
    return int((running.root / "pid").read_text())


def flow_process(running: Running) -> int:
    return int((running.root / "logs/retrain.lock").read_text())


def retrain_again(running: Running) -> None:
    """Ask for one more run; it waits where a killed one still has its place."""
    started = time.monotonic()
    prefect(running, "deployment", "run", "retrain/weekly", "--watch")
    print("completed after", round(time.monotonic() - started), "seconds")


@pytest.fixture(autouse=True)
def _login(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, servers.client[name])


@pytest.mark.parametrize("with_its_run", [False, True])
def test_killed_worker(
    running: Running, undisturbed: bytes, worker: Server, servers: Servers, with_its_run: bool
) -> None:
    """Without its worker a run ends by itself, as it loses the place for its output."""
    stage = in_the_middle(running)
    worker.kill()
    if with_its_run:
        os.kill(flow_process(running), signal.SIGKILL)
        wait_for(lambda: not is_alive(stage), 40)
    (running.root / "slow").unlink()
    wait_for(lambda: not is_alive(flow_process(running)))
    worker.start()
    retrain_again(running)
    assert_as_undisturbed(running, undisturbed, servers.addresses["mlflow"])


def test_postgres_killed_while_it_is_written_to(
    running: Running, undisturbed: bytes, worker: Server, servers: Servers
) -> None:
    uri = servers.addresses["mlflow"]
    prefect(running, "deployment", "run", "retrain/weekly")
    running.wait_for_the_stages(undisturbed)
    time.sleep(1)
    servers.running["postgres"].kill()
    time.sleep(5)
    servers.running["postgres"].start()
    wait_for(lambda: not is_alive(flow_process(running)))
    retrain_again(running)
    assert_as_undisturbed(running, undisturbed, uri)


def test_killed_postgres(
    running: Running, undisturbed: bytes, worker: Server, servers: Servers
) -> None:
    uri = servers.addresses["mlflow"]
    in_the_middle(running)
    servers.running["postgres"].kill()
    (running.root / "slow").unlink()
    time.sleep(5)
    servers.running["postgres"].start()
    assert champion(running, uri) == "1"
    wait_for(lambda: not is_alive(flow_process(running)))
    retrain_again(running)
    assert_as_undisturbed(running, undisturbed, uri)
