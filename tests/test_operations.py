"""Operations on the tiny pipeline, by real processes: asked, served, judged on new questions."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.test_pipeline import FIRSTKD, Project
from tests.tiny import write_tiny_project, write_tiny_questions

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

QUESTION = "Where does the red bee live?"
WHO = ("challenger", "champion")
NAMED = "name = 'firstkd-student'"
CHOICES = ["in a den", "in a hive", "in the sea"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A tiny project with a champion, made without a Prefect server."""
    root = tmp_path_factory.mktemp("operations")
    project = Project(root, {**write_tiny_project(root), "COLUMNS": "120"})
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        project.environment.pop(name, None)
    done = project.dvc("repro")
    assert done.returncode == 0, done.stderr[-3000:]
    done = project.firstkd("record")
    assert done.returncode == 0, done.stderr[-3000:]
    return project


@contextmanager
def running(
    project: Project, command: list[str], path: str
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run a server on a free port of this machine alone; yield its address and process.

    It is up when `path` answers.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*command, "--host", "127.0.0.1", "--port", str(port)]
    uri = f"sqlite:///{project.root}/mlflow/mlflow.db"
    environment = {**project.environment, "MLFLOW_TRACKING_URI": uri}
    with (project.root / "serve.log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=project.root, env=environment, stdout=log, stderr=log
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 300
        while not _answers(f"{address}{path}"):
            assert server.poll() is None, Path(log.name).read_text()[-3000:]
            assert time.monotonic() < deadline, Path(log.name).read_text()[-3000:]
            time.sleep(0.5)
        yield address, server
    finally:
        server.terminate()
        server.wait(timeout=60)


def post(url: str, body: object) -> Any:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data=json.dumps(body).encode(), headers=headers)
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)


def in_charge(address: str) -> str:
    with urllib.request.urlopen(f"{address}/health", timeout=60) as response:
        return str(json.load(response)["version"])


def allow_anything(project: Project) -> None:
    """Let the gate compare with the champion, and find nothing too much worse."""
    for limit in ("accuracy_drop", "out_of_domain_drop"):
        project.change("promote", f"max_{limit}", to=1.0)
    for limit in ("nll_increase", "brier_increase", "aurc_increase"):
        project.change("promote", f"max_{limit}", to=1.0)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def test_the_champion_is_asked_from_the_terminal(project):
    choices = [word for choice in CHOICES for word in ("--choice", choice)]
    done = project.firstkd("ask", QUESTION, *choices)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(tuple(f"{choice}  (confidence 0." for choice in CHOICES))
    assert done.stdout.endswith("firstkd-student v1)\n")
    kept = (project.root / "params.yaml").read_text()
    project.change("serve", "abstain_below", to=1.0)
    assert project.firstkd("ask", QUESTION, *choices).stdout.startswith("abstain  (best guess: in ")
    (project.root / "params.yaml").write_text(kept)
    refused = project.firstkd("ask", QUESTION, "--choice", "in a den")
    assert refused.stderr == "error: name at least two possible answers, each with --choice\n"


def test_the_champion_is_served_over_http(project):
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    command += ["-m", "models:/firstkd-student@champion"]
    records = [{"question": QUESTION, "choices": CHOICES}]
    with running(project, command, "/ping") as (address, _):
        [answer] = post(f"{address}/invocations", {"dataframe_records": records})["predictions"]
    assert answer["answer"] in CHOICES
    assert 1 / 3 <= answer["confidence"] <= 1
    assert answer["abstain"] is False


SERVE = [str(FIRSTKD), "serve"]
ASKED = {"questions": [{"question": QUESTION, "choices": CHOICES}]}


def test_our_own_server_answers_as_the_terminal_does_and_stops_in_order(project):
    choices = [word for choice in CHOICES for word in ("--choice", choice)]
    asked = project.firstkd("ask", QUESTION, *choices).stdout
    with running(project, SERVE, "/health") as (address, server):
        [answer] = post(f"{address}/answer", ASKED)["answers"]
        server.terminate()
        assert server.wait(timeout=60) == 0
    assert answer["by"] == "firstkd-student v1" and answer["route"] == "answered"
    said = f"{answer['answer']}  (confidence {answer['confidence']:.2f}, firstkd-student v1)\n"
    assert asked == said
    refused = project.firstkd("serve", "--host", "0.0.0.0")
    assert refused.returncode == 1
    assert refused.stderr.startswith(
        "error: other machines can reach 0.0.0.0, so clients need a token"
    )


def test_a_pickle_planted_in_the_registry_is_refused(project):
    [weights] = (project.root / "mlflow/artifacts").rglob("artifacts/average/model.safetensors")
    planted, proof = weights.with_name("pytorch_model.bin"), project.root / "it ran"
    planted.write_bytes(f"cos\nsystem\n(S'touch \"{proof}\"'\ntR.".encode())
    try:
        done = project.firstkd("ask", QUESTION, "--choice", "in a den", "--choice", "in a hive")
    finally:
        planted.unlink()
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: firstkd-student v1 contains average/pytorch_model.bin, "
        "which is not part of a student"
    )
    assert len(done.stderr.splitlines()) == 1
    assert not proof.exists()


def test_the_champion_is_measured_anew_when_the_test_questions_change(project):
    """It leaves another state. The server takes up what is decided meanwhile."""
    write_tiny_questions(project.root / "sources/questions.jsonl", 120, seed=1)
    allow_anything(project)
    with running(project, SERVE, "/health") as (address, _):
        for command in (project.dvc("repro"), project.firstkd("record")):
            assert command.returncode == 0, command.stderr[-3000:]
        for change, version in ((None, "v2"), ("rollback", "v1")):
            if change:
                assert project.firstkd(change).returncode == 0
            deadline = time.monotonic() + 60
            while in_charge(address) != f"firstkd-student {version}":
                assert time.monotonic() < deadline
                time.sleep(0.5)
            [answer] = post(f"{address}/answer", ASKED)["answers"]
            assert answer["by"] == f"firstkd-student {version}"
    assert project.firstkd("promote", "--no-comparison").returncode == 0
    assert "v2 is promoted\n" in command.stdout
    assert "champion v1, tested on other questions, was measured again on these" in command.stdout
    # the first decision; the second one left the comparison out
    file, _ = sorted((project.root / "mlflow/artifacts").rglob("promotion/version-2/*.json"))
    decision = json.loads(file.read_text())
    assert decision["champion"]["measured_anew"] and not decision["challenger"]["measured_anew"]
    examples = {who: decision[who]["sets"]["test"]["examples"] for who in WHO}
    assert examples["champion"] == examples["challenger"] > 20
    # what the data do not hold is not measured: questions of v2, seen from those of v1
    again = project.firstkd("promote", "--version", "1", "--dry-run")
    assert again.returncode == 1
    assert "champion v2 was tested on other questions" in again.stdout


def test_a_recalibration_that_is_killed_goes_on_and_releases_one_version(project):
    """It is killed while it fits, records, registers and decides."""
    allow_anything(project)
    write_tiny_questions(project.root / "newer.jsonl", 60, seed=3)
    client = MlflowClient(f"sqlite:///{project.root}/mlflow/mlflow.db")
    before = int(client.get_model_version_by_alias("firstkd-student", "champion").version)
    after = 1 + max(int(v.version) for v in client.search_model_versions(NAMED))
    command = [str(FIRSTKD), "recalibrate", "newer.jsonl"]
    started = time.monotonic()
    undisturbed = project.firstkd(*command[1:], "--dry-run")
    assert undisturbed.returncode == 0, undisturbed.stderr[-3000:]
    fitting = time.monotonic() - started
    for seconds in (fitting / 2, fitting, fitting + 1, fitting + 2, fitting + 4):
        process = subprocess.Popen(
            command,
            cwd=project.root,
            env=project.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(seconds)
        process.kill()
        process.wait(timeout=60)
        champion = client.get_model_version_by_alias("firstkd-student", "champion")
        assert int(champion.version) in (before, after)
    done = project.firstkd(*command[1:])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert max(int(v.version) for v in client.search_model_versions(NAMED)) == after
    champion = client.get_model_version_by_alias("firstkd-student", "champion")
    assert int(champion.version) == after and champion.tags["decision"] == "promoted"
    experiment = client.get_experiment_by_name("firstkd")
    runs = client.search_runs([experiment.experiment_id])
    assert "RUNNING" not in {run.info.status for run in runs}
