"""The loop from production back to production, by real processes.

Serve → traffic → collect → retrain on schedule → gate → the server serves the new version; then the
same without a training, by newer labelled questions.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from firstkd.data.examples import read_examples
from tests.servers import Server, free_port, status_of, wait_for
from tests.test_operations import SERVE, in_charge, post, running
from tests.test_pipeline import FIRSTKD, Project
from tests.tiny import write_tiny_project, write_tiny_questions

pytestmark = [pytest.mark.integration, pytest.mark.timeout(2400)]

SERVED, CORRECTED = 30, 10


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A tiny project with a champion, whose gate lets everything through and which logs traffic."""
    root = tmp_path_factory.mktemp("loop")
    project = Project(root, {**write_tiny_project(root), "COLUMNS": "120"})
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        project.environment.pop(name, None)
    for limit in ("accuracy_drop", "nll_increase", "brier_increase", "aurc_increase"):
        project.change("promote", f"max_{limit}", to=1.0)
    project.change("promote", "max_out_of_domain_drop", to=1.0)
    kept = {"drop": [], "hash": [], "rows": 10, "files": 100}
    project.change("serve", "traffic", to=kept)
    for done in (project.dvc("repro"), project.firstkd("record")):
        assert done.returncode == 0, done.stderr[-3000:]
    return project


@contextmanager
def scheduled(project: Project, folder: Path) -> Iterator[None]:
    """Have it retrained every minute, by a lasting Prefect server."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    environment = {**project.environment, "PREFECT_HOME": str(folder / "prefect")}
    environment |= {"PREFECT_API_URL": url, "PYTHONUNBUFFERED": "1"}
    start = [sys.executable, "-m", "prefect", "server", "start", "--no-ui"]
    start += ["--host", "127.0.0.1", "--port", str(port)]
    log = project.root / "schedule.log"  # a server runs in the folder of its log
    prefect = Server(
        start, environment, folder / "prefect.log", lambda: status_of(f"{url}/health") == 200
    )
    schedule = Server(
        [str(FIRSTKD), "schedule", "--cron", "* * * * *"],
        environment,
        log,
        lambda: "Retraining " in log.read_text(),
    )
    prefect.start()
    try:
        schedule.start()
        yield
    finally:
        schedule.stop()
        prefect.stop()


def takes_over(address: str, version: str) -> None:
    wait_for(lambda: in_charge(address) == f"firstkd-student {version}", 1200)


def test_what_was_served_and_corrected_makes_the_next_version(project, tmp_path):
    root = project.root
    write_tiny_questions(tmp_path / "asked.jsonl", SERVED, seed=7)
    asked = [json.loads(line) for line in (tmp_path / "asked.jsonl").read_text().splitlines()]
    with running(project, SERVE, "/health") as (address, _):
        ids = []
        for each in asked:
            body = {"questions": [{name: each[name] for name in ("question", "choices")}]}
            [answer] = post(f"{address}/answer", body)["answers"]
            assert answer["by"] == "firstkd-student v1"
            ids.append(answer["id"])
        traffic = root / "logs/traffic"
        wait_for(lambda: len([*traffic.glob("*.parquet")]) == SERVED // 10)

        corrections = tmp_path / "corrections.csv"
        rows = [f"{i},{each['answer']}" for i, each in zip(ids, asked, strict=True)]
        corrections.write_text("\n".join(["id,answer", *rows[:CORRECTED]]) + "\n")
        done = project.firstkd("collect", "--corrections", str(corrections))
        assert done.returncode == 0, done.stderr
        assert f"{SERVED} questions in sources/traffic.jsonl" in done.stdout
        assert f"{CORRECTED} corrected questions in sources/corrected.jsonl" in done.stdout
        for name, role in (("traffic", "unlabelled"), ("corrected", "calibration")):
            source = {"source": f"path:sources/{name}.jsonl", "format": "questions", "role": role}
            project.change("fetch", "datasets", name, to=source)

        with scheduled(project, tmp_path):
            takes_over(address, "v2")
        [answer] = post(f"{address}/answer", body)["answers"]
        assert answer["by"] == "firstkd-student v2"
        calibration, unlabelled = (
            [e for e in read_examples(root / f"data/prepare/{split}.parquet") if e.source == name]
            for split, name in (("calibration", "corrected"), ("unlabelled", "traffic"))
        )
        assert {e.prompt for e in calibration} == {e["question"] for e in asked[:CORRECTED]}
        assert {e.prompt for e in unlabelled} == {e["question"] for e in asked[CORRECTED:]}

        write_tiny_questions(root / "sources/newer.jsonl", 25, seed=9)
        dry = project.firstkd("recalibrate", "sources/newer.jsonl", "--dry-run")
        assert dry.returncode == 0 and dry.stdout.endswith("nothing has changed.\n"), dry.stderr
        done = project.firstkd("recalibrate", "sources/newer.jsonl")
        assert done.returncode == 0, done.stderr
        assert "fitted to 25 questions: v2's temperature changes from " in done.stdout
        assert "firstkd-student v3 is promoted" in done.stdout
        takes_over(address, "v3")
        assert post(f"{address}/answer", body)["answers"][0]["by"] == "firstkd-student v3"
        shown = project.firstkd("history").stdout
        assert "recalibrates v2  [challenger, champion]" in shown
        status = project.firstkd("status").stdout
        assert "drift: none in the questions firstkd-student v" in status, status
