"""Unattended: busy workspaces, retries, the webhook, and a real schedule with a cancelled run."""

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client
from prefect.client.schemas.filters import DeploymentFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling
from typer.testing import CliRunner

from firstkd.errors import ConfigError
from firstkd.notify import notify
from firstkd.settings import load_settings
from flows.cli import app
from flows.dvc import StageError, TransientStageError, WorkspaceBusyError
from flows.retrain import retrain
from flows.schedule import deployment_name, make_schedule
from flows.state import read_state
from flows.workspace import Workspace
from tests.flows.projects import REPOSITORY, Quiet, change, is_alive

FIRSTKD = [sys.executable, "-c", "from flows.cli import main; main()"]
SLEEPING = "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\n"
SLEEPING += "time.sleep(120)\n"


def wait_for(condition: Any, seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.2)
    raise AssertionError(f"{condition} never came true")


def make_sleep(project: Workspace) -> None:
    """Let the teacher's stage write its process id and then do nothing for two minutes."""
    pipeline = project.root / "pipeline.py"
    text = pipeline.read_text()
    start = '        case "model":\n'
    body = "".join(f"            {line}\n" for line in SLEEPING.splitlines())
    pipeline.write_text(text.replace(start, start + body))
    change(project.root, "train.finetune", "epochs", 9)


@pytest.mark.slow
def test_plain_dvc_repro_keeps_the_retraining_out(project: Workspace) -> None:
    make_sleep(project)
    other = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro"], cwd=project.root, start_new_session=True
    )
    try:
        wait_for((project.root / "pid").exists)
        words = rf"^DVC is already running in {project.root} \(process {other.pid}: .*; wait for"
        with pytest.raises(WorkspaceBusyError, match=words):
            project.stale()
        with pytest.raises(WorkspaceBusyError, match=words):
            project.reproduce("model-teacher", Quiet())
        state = read_state(project, load_settings(project.root / "params.yaml"))
        assert state.busy and re.match(words, state.busy) and state.stages == []
    finally:
        os.killpg(other.pid, signal.SIGKILL)
    other.wait()
    assert "model-teacher" in project.stale()


@pytest.mark.usefixtures("prefect_server")
def test_crashed_stage_is_tried_again_and_finished_ones_are_not(project: Workspace) -> None:
    pipeline = project.root / "pipeline.py"
    body = "import os\nprint('ran', *sys.argv[1:], file=open('ran', 'a'))\n"
    body += "first = open('ran').read().count('ran model first')\n"
    body += "if sys.argv[1:] == ['model', 'first'] and first == 1:\n"
    body += "    os.kill(os.getpid(), 9)\n"
    pipeline.write_text(pipeline.read_text().replace("\nQUESTIONS", f"\n{body}\nQUESTIONS", 1))
    change(project.root, "train.finetune", "epochs", 9)
    change(project.root, "train.distill", "epochs", 5)
    change(project.root, "retrain", "retry_delay_seconds", 0)
    assert retrain(str(project.root)).concluded.verdict.passed
    ran = (project.root / "ran").read_text().splitlines()
    assert ran == [
        "ran model teacher",
        "ran model first",
        "ran model first",
        "ran evaluate first",
        "ran report",
    ]


@pytest.mark.usefixtures("prefect_server")
def test_error_of_the_stages_own_is_not_tried_again(project: Workspace) -> None:
    change(project.root, "train.finetune", "epochs", 13)
    started = time.monotonic()
    with pytest.raises(StageError) as failure:
        retrain(str(project.root))
    assert not isinstance(failure.value, TransientStageError)
    assert time.monotonic() - started < 25  # no retry, which would wait 30 s


class Received(BaseHTTPRequestHandler):
    messages: list[Any] = []  # noqa: RUF012 - of the one server below
    status = 200

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self.messages.append(json.loads(self.rfile.read(length)))
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[Any]]]:
    Received.messages = []
    server = HTTPServer(("127.0.0.1", 0), Received)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook", Received.messages
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("prefect_server")
def test_webhook_hears_of_promotion_and_failure(
    project: Workspace, webhook: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, messages = webhook
    change(project.root, "retrain", "webhook", url)
    retrain(str(project.root))
    retrain(str(project.root))  # nothing new, nothing to tell
    change(project.root, "train.finetune", "epochs", 13)
    with pytest.raises(StageError):
        retrain(str(project.root))
    assert [message["event"] for message in messages] == ["promoted", "failed"]
    assert messages[0]["text"].startswith("firstkd-student v1 is promoted\n  - ECE 0.050")
    assert messages[1]["text"] == "model: thirteen epochs are too many"
    assert messages[1]["project"] == str(project.root)

    monkeypatch.setattr(Received, "status", 500)
    with pytest.raises(StageError):
        retrain(str(project.root))
    monkeypatch.setenv("FIRSTKD_WEBHOOK", "http://127.0.0.1:9/secret")  # nobody is there
    with pytest.raises(StageError, match="thirteen epochs"):
        retrain(str(project.root))
    assert len(messages) == 3

    monkeypatch.setattr(Received, "status", 200)
    monkeypatch.setenv("FIRSTKD_WEBHOOK", url)
    (project.root / "params.yaml").write_text("runtime: {}\n")
    with pytest.raises(ConfigError):
        retrain(str(project.root))
    assert messages[3]["event"] == "failed" and "params.yaml" in messages[3]["text"]


@pytest.mark.usefixtures("prefect_server")
def test_webhook_hears_once_of_a_promotion_whose_run_was_killed_before_it_could_tell(
    project: Workspace, webhook: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, messages = webhook
    change(project.root, "retrain", "webhook", url)

    def killed(*_: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("flows.conclude.announce", killed)
        retrain(str(project.root))
    assert messages == []
    monkeypatch.chdir(project.root)
    for _ in range(2):
        assert CliRunner().invoke(app, ["record"]).exit_code == 0
    assert [message["event"] for message in messages] == ["promoted"]
    assert messages[0]["text"].startswith("firstkd-student v1 is promoted\n  - ECE 0.050")


@pytest.mark.usefixtures("prefect_server")
def test_webhook_hears_of_a_rollback(
    project: Workspace, webhook: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, messages = webhook
    change(project.root, "retrain", "webhook", url)
    retrain(str(project.root))
    change(project.root, "train.distill", "epochs", 5)
    retrain(str(project.root))
    monkeypatch.chdir(project.root)
    done = CliRunner().invoke(app, ["rollback"])
    assert done.output == "The champion is firstkd-student v1; v2 was rolled back.\n"
    assert [message["event"] for message in messages] == ["promoted", "promoted", "rolled back"]
    assert messages[2]["text"] == done.output.strip()


def test_a_server_keeps_the_address_of_its_webhook_out_of_its_log(
    project: Workspace,
    webhook: tuple[str, list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url, messages = webhook

    def serve(opened: Any, *_: Any) -> None:
        notify(url, opened.root, "drift", "the questions have changed")

    monkeypatch.setattr("flows.serve.serve", serve)
    monkeypatch.chdir(project.root)
    with caplog.at_level(logging.INFO):
        assert CliRunner().invoke(app, ["serve"]).exit_code == 0
    assert [message["event"] for message in messages] == ["drift"]
    assert url not in caplog.text


def test_schedule_is_checked_at_once() -> None:
    with pytest.raises(ConfigError, match="--cron 'every monday' is not a cron string"):
        make_schedule("every monday", "UTC")
    with pytest.raises(ConfigError, match="--timezone 'Mars/Olympus' is unknown"):
        make_schedule("0 3 * * 1", "Mars/Olympus")
    assert make_schedule("0 3 * * 1", "Europe/Berlin").timezone == "Europe/Berlin"


@pytest.mark.slow
def test_schedule_needs_a_lasting_server(project: Workspace) -> None:
    done = subprocess.run(
        [*FIRSTKD, "schedule", "--cron", "0 3 * * 1"],
        cwd=project.root,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "a schedule needs a running" in line and "`prefect server start`" in line
    assert "PREFECT_API_URL" in line


@pytest.fixture
def lasting_server(tmp_path: Path) -> Iterator[str]:
    """Run `prefect server start`: the one inside the test harness never starts scheduled runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect")}
    environment.pop("PREFECT_API_URL", None)
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--port", str(port), "--no-ui"],
            env=environment,
            stdout=log,
            stderr=log,
        )
    with temporary_settings({PREFECT_API_URL: url}):
        wait_for(lambda: answers(f"{url}/health"), 120)
        yield url
    server.terminate()
    server.wait(timeout=60)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@pytest.fixture
def scheduled(project: Workspace, lasting_server: str) -> Iterator[str]:
    """Run `firstkd schedule` every minute; yield the deployment's name."""
    with (project.root / "schedule.log").open("w") as log:
        process = subprocess.Popen(
            [*FIRSTKD, "schedule", "--cron", "* * * * *"],
            cwd=project.root,
            env={
                **os.environ,
                "PYTHONPATH": str(REPOSITORY),
                "PREFECT_API_URL": lasting_server,
            },
            stdout=log,
            stderr=log,
        )
    yield deployment_name(project.root)
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()


def runs_of(name: str) -> list[FlowRun]:
    """Return the deployment's flow runs that have started, the oldest first."""
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            deployment_filter=DeploymentFilter(name={"any_": [name]}), sort="START_TIME_ASC"
        )
    return [run for run in runs if run.start_time]


def ended(name: str) -> list[FlowRun]:
    return [run for run in runs_of(name) if run.state and run.state.is_final()]


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_the_webhook_hears_of_a_scheduled_run_that_was_killed(
    project: Workspace, scheduled: str, webhook: tuple[str, list[Any]]
) -> None:
    url, messages = webhook
    change(project.root, "retrain", "webhook", url)
    make_sleep(project)
    wait_for((project.root / "pid").exists, 200)
    os.kill(int((project.root / "logs/retrain.lock").read_text()), signal.SIGKILL)
    wait_for(lambda: messages, 60)
    [message] = messages
    assert message["event"] == "failed" and message["project"] == str(project.root)
    assert "Process exited with status code: -9" in message["text"]


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_schedule_runs_by_itself_and_a_cancelled_run_ends_its_stages(
    project: Workspace, scheduled: str
) -> None:
    log = project.root / "schedule.log"
    [first, *_] = wait_for(lambda: ended(scheduled), 200)
    assert first.state is not None and first.state.name == "Completed", log.read_text()
    make_sleep(project)
    pid = wait_for(lambda: (project.root / "pid").exists() and (project.root / "pid"), 200)
    [sleeping] = [run for run in runs_of(scheduled) if run.state and run.state.is_running()]
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(sleeping.id, Cancelling())
    stage = int(pid.read_text())
    wait_for(lambda: not is_alive(stage), 90)
    states = {run.id: run.state for run in wait_for(lambda: ended(scheduled), 60)}
    wait_for(lambda: sleeping.id in {run.id for run in ended(scheduled)}, 60)
    states = {run.id: run.state for run in ended(scheduled)}
    assert states[sleeping.id].type is StateType.CANCELLED, log.read_text()
