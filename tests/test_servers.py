"""The tiny pipeline in the hands of real servers: `make test-integration`.

A worker runs it on a schedule; better data are promoted, worse refused; then back, and rebuilt.
"""

import base64
import json
import random
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType
from ruamel.yaml import YAML

from firstkd.settings import load_settings
from tasks.graph import write_graph
from tests.servers import BUCKET, Server, Servers, status_of, wait_for
from tests.tiny import REPOSITORY, write_tiny_project, write_tiny_questions

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

NAME = "firstkd-student"
DEPLOYMENT = "retrain/weekly"
PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]
FIRSTKD = [sys.executable, "-c", "from flows.cli import main; main()"]


@dataclass
class Operated:
    """A tiny project in git whose retrainings a worker runs."""

    root: Path
    servers: Servers
    environment: dict[str, str]
    since: str = field(default_factory=lambda: datetime.now(UTC).isoformat())

    def run(self, *command: str) -> str:
        done = self.try_to_run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def try_to_run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True
        )

    def prefect(self, *arguments: str) -> str:
        return self.run(*PREFECT, *arguments)

    def firstkd(self, *arguments: str) -> str:
        return self.run(*FIRSTKD, *arguments)

    def flow_runs(self) -> list[dict[str, Any]]:
        """Return those of this project that have started, the oldest first."""
        ours = {"start_time": {"after_": self.since}}  # other tests share the server
        body = {"sort": "START_TIME_ASC", "flow_runs": ours}
        runs: list[dict[str, Any]] = self.ask("flow_runs/filter", body)
        return runs

    def ask(self, path: str, body: dict[str, Any]) -> Any:
        login = base64.b64encode(f"firstkd:{self.servers.passwords['prefect']}".encode())
        request = urllib.request.Request(
            f"{self.servers.addresses['prefect']}/{path}",
            data=json.dumps(body).encode(),
            headers={
                "Authorization": f"Basic {login.decode()}",
                "Content-Type": "application/json",
            },
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)

    def wait_for_the_schedule(self) -> None:
        """Wait until the first flow run has ended, and well."""
        final = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}

        def has_ended() -> bool:
            return any(run["state_type"] in final for run in self.flow_runs())

        wait_for(has_ended, 600)
        log = (self.root / "worker.log").read_text()
        assert self.flow_runs()[0]["state_type"] == "COMPLETED", log[-5000:]

    def retrain(self) -> None:
        """Have the worker retrain now, behind what the schedule has begun; wait until it has."""
        self.prefect("deployment", "run", DEPLOYMENT, "--watch")

    def change(self, changes: dict[str, Any]) -> None:
        """Set sections or keys of params.yaml, by their dotted names."""
        yaml = YAML()
        params = yaml.load(self.root / "params.yaml")
        for dotted, value in changes.items():
            *sections, key = dotted.split(".")
            section = params
            for name in sections:
                section = section[name]
            section[key] = value
        yaml.dump(params, self.root / "params.yaml")
        write_graph(self.root, load_settings(self.root / "params.yaml"))

    def write_data(self, train: int, test: int, scrambled: bool) -> None:
        """Write training questions, scrambled ones with answers by chance, and test questions."""
        sources = self.root / "sources"
        write_tiny_questions(sources / "questions.jsonl", train, seed=1)
        write_tiny_questions(sources / "asked.jsonl", test, seed=3)
        if not scrambled:
            return
        draw = random.Random(train)
        records = [json.loads(line) for line in (sources / "questions.jsonl").open()]
        for record in records:
            record["answer"] = draw.choice(record["choices"])
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (sources / "questions.jsonl").write_text(lines)

    def git(self, *arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        return self.run("git", *identity, *arguments).strip()


@pytest.fixture
def operated(servers: Servers, tmp_path: Path) -> Operated:
    root = tmp_path / "project"
    root.mkdir()
    environment = write_tiny_project(root)
    environment |= {**servers.client, "PYTHONPATH": str(REPOSITORY), "PWD": str(root)}
    found = Operated(root, servers, environment)
    (root / "sources/questions.jsonl").unlink()
    question = {"format": "questions", "role": "train", "source": "path:sources/questions.jsonl"}
    asked = {"format": "questions", "role": "test", "source": "path:sources/asked.jsonl"}
    changes: dict[str, Any] = {
        "fetch.datasets.questions": question,
        "fetch.datasets.asked": asked,
        "evaluate.models": ["first"],
        "record.student": "first",
        "promote.require_reproducible": True,
        "promote.max_accuracy_drop": 0.05,
        "promote.max_nll_increase": 10.0,
        "promote.max_brier_increase": 1.0,
        "promote.max_aurc_increase": 1.0,
        "promote.max_out_of_domain_drop": 1.0,
        "publish.push": True,
        "publish.branch": "retrained",
    }
    for section in ("finetune", "distill"):
        changes |= {f"train.{section}.epochs": 5, f"train.{section}.learning_rate": 1e-2}
    found.change(changes)
    found.write_data(train=80, test=60, scrambled=True)
    shutil.copy(REPOSITORY / "prefect.yaml", root)
    private = "/.dvc/cache\n/.dvc/tmp\n/.dvc-site\n/worker.log\n"
    (root / ".gitignore").write_text((REPOSITORY / ".gitignore").read_text() + private)
    found.run(sys.executable, "-m", "dvc", "remote", "add", "-d", "storage", f"s3://{BUCKET}/dvc")
    found.git("init", "--quiet")
    found.git("add", ".")
    found.git("commit", "--quiet", "--message", "The tiny project")
    return found


@pytest.fixture
def worker(operated: Operated) -> Iterator[Server]:
    """Work pool, deployment and worker, as a container starts them."""
    log = operated.root / "worker.log"
    command = ["sh", str(REPOSITORY / "infra/start-worker.sh")]
    started = Server(command, operated.environment, log, lambda: "started!" in log.read_text())
    started.start()
    yield started
    started.stop()


def test_weekly_retraining_by_a_worker(
    operated: Operated, worker: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("USERNAME", "PASSWORD"):
        key = f"MLFLOW_TRACKING_{name}"
        monkeypatch.setenv(key, operated.environment[key])
    client = MlflowClient(operated.servers.addresses["mlflow"])

    def aliases() -> dict[str, str]:
        found = client.get_registered_model(NAME).aliases
        return {alias: str(number) for alias, number in found.items()}

    # the first champion, by the schedule
    operated.prefect("deployment", "schedule", "create", DEPLOYMENT, "--interval", "60")
    operated.wait_for_the_schedule()
    operated.prefect("deployment", "schedule", "clear", DEPLOYMENT, "--accept-yes")
    assert aliases() == {"challenger": "1", "champion": "1"}

    # new data: better ones, and more questions to be tested on
    operated.write_data(train=280, test=90, scrambled=False)
    operated.retrain()
    assert aliases() == {"challenger": "2", "champion": "2"}
    reasons = client.get_model_version(NAME, "2").tags["decision_reasons"]
    assert "champion v1, tested on other questions, was measured again on these" in reasons

    # worse ones
    operated.write_data(train=100, test=90, scrambled=True)
    operated.retrain()
    assert aliases() == {"challenger": "3", "champion": "2"}
    refused = client.get_model_version(NAME, "3").tags
    assert refused["decision"] == "rejected"
    assert refused["decision_reasons"].startswith("accuracy -0.")

    assert "The champion is firstkd-student v1" in operated.firstkd("rollback")
    assert aliases()["champion"] == "1"

    # what the local cache has lost comes back from the store
    shutil.rmtree(operated.root / ".dvc/cache")
    said = operated.firstkd("reproduce", "2")
    assert said.splitlines()[-1] == (
        f"{NAME} v2 was reproduced byte for byte; DVC had a copy of everything."
    )
    assert operated.git("rev-list", "--count", "retrained", "--not", "HEAD") == "3"
    _nobody_gets_in_without_a_login(operated)
    _no_password_lies_about(operated, client, tmp_path / "kept")


def test_the_kubernetes_template_is_accepted(operated: Operated) -> None:
    template = str(REPOSITORY / "infra/kubernetes-work-pool.json")
    options = ["--type", "kubernetes", "--base-job-template", template]
    assert "Created work pool 'pods'" in operated.prefect("work-pool", "create", "pods", *options)


def _nobody_gets_in_without_a_login(operated: Operated) -> None:
    mlflow, prefect = (operated.servers.addresses[name] for name in ("mlflow", "prefect"))
    assert status_of(f"{mlflow}/api/2.0/mlflow/registered-models/search") == 401
    assert status_of(f"{prefect}/admin/version") == 401


def _no_password_lies_about(operated: Operated, client: MlflowClient, kept: Path) -> None:
    """Neither in logs, settings and results of the project, nor in what servers tell and keep."""
    passwords = [password.encode() for password in operated.servers.passwords.values()]
    experiments = [found.experiment_id for found in client.search_experiments()]
    runs = client.search_runs(experiments, run_view_type=ViewType.ALL)
    for run in runs:
        folder = kept / run.info.run_id
        folder.mkdir(parents=True)
        client.download_artifacts(run.info.run_id, "", str(folder))
    files = [path for folder in (operated.root, kept) for path in folder.rglob("*")]
    logs = operated.servers.folder.glob("*.log")
    for file in [*logs, *(path for path in files if path.is_file())]:
        content = file.read_bytes()
        assert not any(password in content for password in passwords), file
    assert any(kept.rglob("params.yaml"))
    recorded = [run.to_dictionary() for run in runs]
    versions = [version.tags for version in client.search_model_versions(f"name = '{NAME}'")]
    told = json.dumps(
        [operated.ask("logs/filter", {}), operated.flow_runs(), recorded, versions]
    ).encode()
    assert not any(password in told for password in passwords)
