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

import pytest

from tests.test_pipeline import Project
from tests.tiny import write_tiny_project, write_tiny_questions

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

QUESTION = "Where does the red bee live?"
WHO = ("challenger", "champion")
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
def serving(project: Project, model: str) -> Iterator[str]:
    """Run `mlflow models serve` on a free port of this machine alone; yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    uri = f"sqlite:///{project.root}/mlflow/mlflow.db"
    with (project.root / "serve.log").open("w") as log:
        server = subprocess.Popen(
            command,
            cwd=project.root,
            env={**project.environment, "MLFLOW_TRACKING_URI": uri},
            stdout=log,
            stderr=log,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 240
        while not _answers(f"{address}/ping"):
            assert server.poll() is None, Path(log.name).read_text()[-3000:]
            assert time.monotonic() < deadline, Path(log.name).read_text()[-3000:]
            time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=60)


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
    records = [{"question": QUESTION, "choices": CHOICES}]
    with serving(project, "models:/firstkd-student@champion") as address:
        request = urllib.request.Request(
            f"{address}/invocations",
            data=json.dumps({"dataframe_records": records}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            [answer] = json.load(response)["predictions"]
    assert answer["answer"] in CHOICES
    assert 1 / 3 <= answer["confidence"] <= 1
    assert answer["abstain"] is False


def test_a_pickle_planted_in_the_registry_is_refused(project):
    [weights] = (project.root / "mlflow/artifacts").rglob("artifacts/first/model.safetensors")
    planted, proof = weights.with_name("pytorch_model.bin"), project.root / "it ran"
    planted.write_bytes(f"cos\nsystem\n(S'touch \"{proof}\"'\ntR.".encode())
    try:
        done = project.firstkd("ask", QUESTION, "--choice", "in a den", "--choice", "in a hive")
    finally:
        planted.unlink()
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: firstkd-student v1 holds first/pytorch_model.bin, which no student consists of"
    )
    assert len(done.stderr.splitlines()) == 1
    assert not proof.exists()


def test_the_champion_is_measured_anew_when_the_test_questions_change(project):
    """The last test: it leaves another state."""
    write_tiny_questions(project.root / "sources/questions.jsonl", 120, seed=1)
    project.change("promote", "max_accuracy_drop", to=1.0)
    for limit in ("max_nll_increase", "max_brier_increase", "max_aurc_increase"):
        project.change("promote", limit, to=1.0)
    project.change("promote", "max_out_of_domain_drop", to=1.0)
    for command in (project.dvc("repro"), project.firstkd("record")):
        assert command.returncode == 0, command.stderr[-3000:]
    assert "v2 is promoted\n" in command.stdout
    assert "champion v1, tested on other questions, was measured again on these" in command.stdout
    [file] = (project.root / "mlflow/artifacts").rglob("promotion/version-2/*.json")
    decision = json.loads(file.read_text())
    assert decision["champion"]["measured_anew"] and not decision["challenger"]["measured_anew"]
    examples = {who: decision[who]["sets"]["test"]["examples"] for who in WHO}
    assert examples["champion"] == examples["challenger"] > 20
    # what the data do not hold is not measured: questions of v2, seen from those of v1
    again = project.firstkd("promote", "--version", "1", "--dry-run")
    assert again.returncode == 1
    assert "champion v2 was tested on other questions" in again.stdout
