import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from flows.page import run_link
from flows.workspace import Workspace
from tasks.staleness import waiting
from tests.flows.projects import REPOSITORY, change, dvc
from tests.flows.test_cli import firstkd


def state(root: Path) -> dict:
    done = firstkd(root, "status", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_status_says_why_a_stage_is_stale_and_what_waits_for_it(project: Workspace) -> None:
    assert all(not stage["why"] for stage in state(project.root)["stages"])
    change(project.root, "train.distill", "epochs", 5)
    stages = {stage["name"]: stage for stage in state(project.root)["stages"]}
    assert stages["model-first"]["why"] == ["params.yaml: train.distill.epochs 4 → 5"]
    assert stages["model-teacher"]["waits_for"] == []
    assert stages["report"]["waits_for"] == ["model-first"]
    said = firstkd(project.root, "status").stdout
    assert "stale       model-first             params.yaml: train.distill.epochs 4 → 5" in said
    assert "champion: none yet" in said and "last run: none yet" in said


def test_status_reads_from_the_database_what_mlflow_says(project: Workspace) -> None:
    assert firstkd(project.root, "record").returncode == 0
    found = state(project.root)["record"]
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{project.root}/mlflow/mlflow.db")
    version = client.get_model_version_by_alias("firstkd-student", "champion")
    assert found["champion"] == str(version.version)
    assert found["since"] == version.tags.get("decided_at")
    assert found["last_run"] == version.run_id


def test_what_reads_a_stale_stage_waits_through_others() -> None:
    def entry(out: str, *deps: str) -> dict:
        return {"outs": [{"path": out}], "deps": [{"path": dep} for dep in deps]}

    lock = {
        "a": entry("data/a"),
        "b@x": entry("data/b/x", "data/a/part.json"),
        "c": entry("data/c", "data/b"),
        "d": entry("data/d", "data/a-other"),
    }
    assert waiting(lock, ["a"]) == {"a": [], "b@x": ["a"], "c": ["a"], "d": []}


def test_compare_shows_every_model_on_every_set(project: Workspace) -> None:
    done = firstkd(project.root, "compare")
    assert done.returncode == 0, done.stderr
    assert "On the test questions" in done.stdout and "test set openbookqa" in done.stdout
    found = json.loads(firstkd(project.root, "compare", "--json").stdout)
    assert found["first"]["sets"]["test"]["raw"]["accuracy"]["value"] == pytest.approx(40 / 60)


def test_compare_sets_registered_versions_beside_the_present_models(project: Workspace) -> None:
    assert firstkd(project.root, "record").returncode == 0
    change(project.root, "train.distill", "epochs", 5)
    dvc(project.root, "repro", "--quiet")
    asked = ("compare", "--version", "1", "--version", "champion")
    done = firstkd(project.root, *asked)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "v1, champion" in done.stdout
    found = json.loads(firstkd(project.root, *asked, "--json").stdout)
    accuracy = {name: found[name]["sets"]["test"]["raw"]["accuracy"]["value"] for name in found}
    expected = {"first": 50 / 60, "v1": 40 / 60, "v1, champion": 40 / 60}
    assert accuracy == pytest.approx(expected)
    (project.root / "data/prepare/test.parquet").write_bytes(b"other questions")
    assert "v1 was measured on different test questions" in firstkd(project.root, *asked).stderr
    unknown = firstkd(project.root, "compare", "--version", "best")
    assert unknown.returncode == 1
    assert "has no version 'best'; allowed: 1, challenger, champion" in unknown.stderr


def test_report_adds_cost_and_lineage_outside_of_what_dvc_tracks(project: Workspace) -> None:
    assert firstkd(project.root, "record").returncode == 0
    tracked = (project.root / "data/report/index.html").read_text()
    done = firstkd(project.root, "report", "--no-open")
    assert done.returncode == 0, done.stderr
    page = Path(done.stdout.strip()).read_text()
    assert "12.5" in page and project.lock_digest() in page
    assert "1,200 + 30" in page and "0.25" in page
    with sqlite3.connect(project.root / "mlflow/mlflow.db") as database:
        [(run,)] = database.execute("SELECT run_uuid FROM tags WHERE key = 'dvc_lock_sha256'")
    assert run in page
    assert (project.root / "data/report/index.html").read_text() == tracked
    assert project.stale() == set()


def test_runs_are_linked_where_a_server_shows_them() -> None:
    server = "https://me:secret@mlflow.example:5000/sub/"
    shown = "https://mlflow.example:5000/sub/#/experiments/3/runs/a1"
    assert run_link(server, "3", "a1") == shown
    assert run_link("sqlite:////srv/mlflow.db", "3", "a1") == "a1"


def test_doctor_finds_nothing_wrong_with_a_good_project(project: Workspace) -> None:
    shutil.copy(REPOSITORY / "constraints.txt", project.root)
    done = firstkd(project.root, "doctor", "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert done.returncode == 0, checks
    assert {"python", "packages", "disk", "memory", "device", "dvc", "mlflow"} <= set(checks)
    assert checks["packages"]["found"].endswith("versions match constraints.txt")


def test_doctor_says_what_is_wrong_and_how_to_mend_it(
    project: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with (project.root / ".dvc/config").open("a") as config:
        config.write("['remote \"r\"']\n    url = /no\n")
    (project.root / "constraints.txt").write_text("typer==0.0.1\nnot-installed==1.0\n")
    done = firstkd(project.root, "doctor")
    assert done.returncode == 1
    assert "typer" in done.stdout and "instead of 0.0.1; 1 missing: not-installed" in done.stdout
    assert "wrong  prefect    http://127.0.0.1:9/api/health does not answer" in done.stdout
    assert "→ run `prefect server start`" in done.stdout
    assert "wrong  remote     r: /no cannot be written to" in done.stdout


def test_doctor_names_a_wrong_setting(project: Workspace) -> None:
    change(project.root, "train.distill", "epochz", 3)
    done = firstkd(project.root, "doctor")
    assert done.returncode == 1
    assert "unknown key 'epochz'" in done.stdout
