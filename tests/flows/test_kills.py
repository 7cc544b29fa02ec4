"""SIGKILL of the flow, of a stage and of the MLflow server in the middle of a retraining.

The next run completes with the result of an undisturbed one; nothing is registered twice, and no
champion is one that did not pass. Workers and PostgreSQL are killed in test_server_kills.py.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from prefect.settings import get_current_settings

from flows.record import LOCK_TAG
from flows.workspace import Workspace
from tests.flows.projects import REPOSITORY, change, is_alive

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("prefect_server"),
]

FIRSTKD = [sys.executable, "-c", "from flows.cli import main; main()"]
# where a file `slow` lies, a stage begins its curve, tells its process id and waits for its end
SLOW = """
if sys.argv[1:] == ["model", "first"] and Path("slow").exists():
    import os, time
    logs = Path("logs", "-".join(sys.argv[1:]))
    logs.mkdir(parents=True, exist_ok=True)
    (logs / "curve.jsonl").write_text('{"step": 0, "loss": 1}\\n')
    Path("pid").write_text(str(os.getpid()))
    while Path("slow").exists():
        time.sleep(0.05)
"""


@dataclass
class Running:
    """A project with a change to retrain for, and the environment of its commands."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    model: str = "firstkd-student"
    experiment: str = "firstkd"

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*FIRSTKD, "run"],
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self) -> str:
        process = self.start()
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        return said

    def in_the_middle(self) -> tuple[subprocess.Popen[str], int]:
        """Start a run and wait for the stage that trains the student; return its process id."""
        (self.root / "slow").touch()
        process = self.start()
        wait_for((self.root / "pid").exists)
        time.sleep(0.2)  # until the number is whole
        return process, int((self.root / "pid").read_text())

    def wait_for_the_stages(self, lock: bytes) -> None:
        """Wait until only the record, the registration and the decision are left to do."""
        wait_for(lambda: (self.root / "dvc.lock").read_bytes() == lock)


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, condition
        time.sleep(0.05)


def make_slow(root: Path) -> None:
    pipeline = root / "pipeline.py"
    pipeline.write_text(pipeline.read_text().replace("\nQUESTIONS", f"{SLOW}\nQUESTIONS", 1))


@pytest.fixture
def running(project: Workspace) -> Running:
    """The project with its first champion, and a better student to train."""
    url = get_current_settings().api.url
    assert url
    root = project.root
    make_slow(root)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PREFECT_API_URL": url}
    environment["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    found = Running(root, environment)
    found.run()
    change(root, "train.distill", "epochs", 5)
    change(root, "retrain", "retry_delay_seconds", 0)
    return found


def assert_as_undisturbed(running: Running, undisturbed: bytes, uri: str | None = None) -> None:
    """Two whole records, two versions, and the better one in charge."""
    assert (running.root / "dvc.lock").read_bytes() == undisturbed
    client = MlflowClient(uri or f"sqlite:///{running.root}/mlflow/mlflow.db")
    versions = client.search_model_versions(f"name = '{running.model}'")
    assert sorted(int(version.version) for version in versions) == [1, 2]
    assert {version.tags["decision"] for version in versions} == {"promoted"}
    assert len({version.tags[LOCK_TAG] for version in versions}) == 2
    aliases = client.get_registered_model(running.model).aliases
    assert {alias: str(number) for alias, number in aliases.items()} == {
        "challenger": "2",
        "champion": "2",
    }
    experiment = client.get_experiment_by_name(running.experiment)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert "RUNNING" not in {run.info.status for run in runs}
    whole = [
        run.data.tags[LOCK_TAG]
        for run in runs
        if LOCK_TAG in run.data.tags and run.info.status == "FINISHED"
    ]
    assert len(whole) == len(set(whole)) == 2


def champion(running: Running, uri: str | None = None) -> str:
    client = MlflowClient(uri or f"sqlite:///{running.root}/mlflow/mlflow.db")
    return str(client.get_registered_model(running.model).aliases["champion"])


def test_killed_flow(running: Running, undisturbed: bytes) -> None:
    process, stage = running.in_the_middle()
    process.kill()
    process.wait()
    wait_for(lambda: not is_alive(stage), 40)
    assert champion(running) == "1"
    (running.root / "slow").unlink()
    assert "── model-teacher" not in running.run()
    assert_as_undisturbed(running, undisturbed)


@pytest.mark.parametrize("presses", [1, 2])
def test_interrupted_run_says_how_to_resume(running: Running, presses: int) -> None:
    process, stage = running.in_the_middle()
    for _ in range(presses):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.splitlines()[-1].startswith("interrupted; `firstkd run` resumes from"), said
    assert not is_alive(stage)


def test_run_interrupted_before_its_first_stage_says_how_to_resume(running: Running) -> None:
    process = running.start()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_for(children.read_text)  # DVC, which is asked what is stale
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.startswith("interrupted; `firstkd run` resumes from"), said


def test_killed_stage_is_tried_again_in_the_same_run(running: Running, undisturbed: bytes) -> None:
    process, stage = running.in_the_middle()
    (running.root / "slow").unlink()
    os.kill(stage, signal.SIGKILL)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert_as_undisturbed(running, undisturbed)


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.0, 3.0, 4.5])
def test_flow_killed_while_it_records_registers_and_promotes(
    running: Running, undisturbed: bytes, seconds: float
) -> None:
    process = running.start()
    running.wait_for_the_stages(undisturbed)
    time.sleep(seconds)
    process.kill()
    process.wait()
    running.run()
    assert_as_undisturbed(running, undisturbed)


def test_of_two_in_the_same_second_one_runs_and_the_other_says_why_not(
    running: Running, undisturbed: bytes
) -> None:
    (running.root / "slow").touch()
    both = [running.start(), running.start()]
    wait_for((running.root / "pid").exists)
    wait_for(lambda: any(process.poll() is not None for process in both))
    (refused,) = [process for process in both if process.poll() is not None]
    said, _ = refused.communicate()
    assert refused.returncode == 1
    assert re.search(r"error: (a retraining|DVC) is already running in .*", said), said
    assert "Traceback" not in said
    (running.root / "slow").unlink()
    (runs,) = [process for process in both if process is not refused]
    said, _ = runs.communicate(timeout=300)
    assert runs.returncode == 0, said
    assert_as_undisturbed(running, undisturbed)


@pytest.fixture
def mlflow_server(running: Running) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Return a function that starts an MLflow server, always at the same address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    running.environment["MLFLOW_TRACKING_URI"] = uri
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{running.root}/mlflow/mlflow.db"]
        command += ["--artifacts-destination", f"{running.root}/mlflow/artifacts"]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        environment = {**os.environ, "MLFLOW_TRACKING_URI": ""}
        with (running.root / "server.log").open("w") as log:
            server = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        started.append(server)
        wait_for(lambda: answers(f"{uri}/health"))
        return server

    yield start
    for server in started:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def test_killed_mlflow_server(
    running: Running,
    undisturbed: bytes,
    mlflow_server: Callable[[], subprocess.Popen[bytes]],
) -> None:
    server = mlflow_server()
    process, _ = running.in_the_middle()
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    (running.root / "slow").unlink()
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert said.splitlines()[-1].startswith("error: MLflow at http://127.0.0.1:"), said
    assert "Traceback" not in said
    assert champion(running) == "1"
    mlflow_server()
    assert "── model-first" not in running.run()
    assert_as_undisturbed(running, undisturbed, running.environment["MLFLOW_TRACKING_URI"])


@pytest.mark.parametrize("seconds", [0.3, 1.5, 3.0])
def test_mlflow_server_killed_while_it_is_written_to(
    running: Running,
    undisturbed: bytes,
    mlflow_server: Callable[[], subprocess.Popen[bytes]],
    seconds: float,
) -> None:
    server = mlflow_server()
    process = running.start()
    running.wait_for_the_stages(undisturbed)
    time.sleep(seconds)
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0 or "error: MLflow at http://127.0.0.1:" in said, said
    assert "Traceback" not in said
    mlflow_server()
    running.run()
    assert_as_undisturbed(running, undisturbed, running.environment["MLFLOW_TRACKING_URI"])


def test_two_clones_with_the_same_state_register_it_once(
    running: Running,
    undisturbed: bytes,
    mlflow_server: Callable[[], subprocess.Popen[bytes]],
    tmp_path: Path,
) -> None:
    mlflow_server()
    clone = replace(running, root=shutil.copytree(running.root, tmp_path / "clone"))
    both = [running.start(), clone.start()]
    for process in both:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    assert (clone.root / "dvc.lock").read_bytes() == undisturbed
    uri = running.environment["MLFLOW_TRACKING_URI"]
    assert champion(running, uri) == "2"
    found = MlflowClient(uri).search_model_versions(f"name = '{running.model}'")
    assert sorted(int(version.version) for version in found) == [1, 2]
    assert "Nothing has changed" in running.run()
    assert "Nothing has changed" in clone.run()
