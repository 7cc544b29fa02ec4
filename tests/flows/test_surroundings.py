"""What real machines do to a project: links, odd and moved folders, proxies, encodings, pipes."""

import asyncio
import http.server
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from mlflow.artifacts import download_artifacts
from prefect.settings import PREFECT_API_URL, temporary_settings
from typer.testing import CliRunner

from firstkd.errors import ConfigError, PipelineError
from firstkd.settings import load_settings
from flows.cli import app
from flows.lock import check_lock, registry_lock
from flows.project import Project
from flows.record import record
from flows.registry import load_evidence, register, student_files
from flows.tracking import open_tracking
from flows.workspace import Workspace
from tests.flows.projects import REPOSITORY, dvc, open_project
from tests.flows.test_cli import FIRSTKD, firstkd


def registered_weights(project: Project, scratch: Path) -> bytes:
    version = register(project, record(project).run_id)
    weights, calibration = student_files(project.tracking, version, scratch)
    assert calibration.read_text()
    return (weights / "model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "reflink,symlink"])
def test_files_that_dvc_links_to_its_cache_are_registered(
    project: Workspace, tmp_path: Path, kind: str
) -> None:
    dvc(project.root, "config", "cache.type", kind)
    dvc(project.root, "checkout", "--relink", "--quiet")
    linked = project.root / "data/evaluate/first/calibration.json"
    assert linked.is_symlink() or linked.stat().st_nlink == 2 or "reflink" in kind
    assert registered_weights(open_project(project.root), tmp_path) == b"weights" * 4


@pytest.mark.parametrize(
    ("name", "elsewhere"),
    [("a b#c", False), ("größe:%", False), ("100% b+c&d=e;f@g", False), ("job%20x", True)],
)
def test_a_folder_of_any_name_is_registered(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, elsewhere: bool
) -> None:
    root = shutil.copytree(built, tmp_path / "in" / name)
    if elsewhere:
        shutil.move(root / "mlflow", tmp_path)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    project = open_project(root)
    assert registered_weights(project, tmp_path) == b"weights" * 4
    assert [*root.parent.iterdir()] == [root]  # nothing was written beside it
    with project.tracking.as_default():  # as MLflow's own loader and server find it
        folder = download_artifacts(f"models:/{project.model}/1")
        assert mlflow.models.Model.load(folder).flavors


@pytest.mark.parametrize("name", ["job%20x", "a%3fb", "a?b", "?"])
def test_a_folder_from_which_mlflow_could_load_nothing_is_refused(
    tmp_path: Path, name: str
) -> None:
    root = tmp_path / name
    root.mkdir()
    settings = load_settings(REPOSITORY / "params.yaml").record
    with pytest.raises(ConfigError, match=r"MLflow misreads .* rename the folder"):
        open_tracking(root, settings)
    assert [*tmp_path.iterdir()] == [root]


@pytest.mark.parametrize("places", [["moved"], ["in/größe b"], ["once", "in/twice"]])
def test_a_project_that_was_moved_reads_what_it_has_and_writes_where_it_is(
    opened_project: Project, tmp_path: Path, places: list[str]
) -> None:
    registered_weights(opened_project, tmp_path)
    moved = opened_project
    (tmp_path / "in").mkdir()
    for place in places:
        moved = open_project(shutil.move(moved.root, tmp_path / place))
        status = firstkd(moved.root, "status").stdout
        assert "last run: 20" in status and "champion: none yet" in status
    assert registered_weights(moved, tmp_path) == b"weights" * 4
    [version] = moved.client.search_model_versions()
    assert load_evidence(moved.tracking, version).sets
    run = moved.client.get_run(record(moved).run_id)
    assert run.info.artifact_uri.startswith((tmp_path / places[-1]).as_uri())
    assert not opened_project.root.exists()


@pytest.mark.parametrize("damage", ["not a database", "an older schema", "a newer schema"])
def test_a_database_that_mlflow_cannot_read_is_named(project: Workspace, damage: str) -> None:
    database = project.root / "mlflow" / "mlflow.db"
    if damage == "not a database":
        database.write_bytes(b"garbage" * 100)
    else:
        version = "bd07f7e963c5" if damage == "an older schema" else "f" * 12
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.execute("update alembic_version set version_num = ?", (version,))
    said = f"{re.escape(str(database))} cannot be read .*restore it or move it away"
    with pytest.raises(PipelineError, match=said) as raised:
        open_project(project.root)
    assert damage == "not a database" or "mlflow db upgrade" in str(raised.value)


@pytest.mark.parametrize(
    "command", ["run", "status", "record", "compare", "history", "ask q", "reproduce 1", "doctor"]
)
def test_settings_in_another_encoding_are_one_line_of_every_command(
    project: Workspace, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project.root / "params.yaml"
    path.write_bytes("# Größe\n".encode("latin-1") + path.read_bytes())
    monkeypatch.chdir(project.root)
    result = CliRunner().invoke(app, command.split())
    said = result.stdout if command == "doctor" else str(result.exception)
    assert "params.yaml, line 1: not UTF-8" in said
    assert result.exit_code == 1


@pytest.mark.parametrize("place", ["file:./mlruns", "mlruns", "file:///srv/mlruns"])
def test_a_folder_as_the_record_is_refused_with_the_reason(
    opened_project: Project, place: str
) -> None:
    settings = opened_project.settings.record.model_copy(update={"tracking_uri": place})
    with pytest.raises(ConfigError, match="cannot keep a model registry; use a database"):
        open_tracking(opened_project.root, settings)


def test_a_proxy_is_not_asked_for_the_servers_of_this_machine() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        url = f"http://localhost:{server.server_port}/"
        code = f"import flows, httpx; httpx.head({url!r}).raise_for_status()"
        proxies = {"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}
        subprocess.run(
            [sys.executable, "-c", code], cwd=REPOSITORY, env={**os.environ, **proxies}, check=True
        )


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252", "utf-8"])
def test_what_an_encoding_does_not_have_is_no_error(
    project: Workspace, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    done = subprocess.run(
        [*FIRSTKD, "compare"],
        cwd=project.root,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    shown = "0.01–0.10".encode(encoding, "replace")  # cp1252 has the dash
    assert shown in done.stdout and done.stderr == b""


@pytest.mark.parametrize(
    "command",
    [
        *("status", "compare", "report", "--help", "nonsense"),
        pytest.param("run", marks=pytest.mark.integration),
    ],
)
def test_a_reader_that_leaves_is_no_error(project: Workspace, command: str) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run(
        [*FIRSTKD, command],
        cwd=project.root,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=writes,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writes)
    assert done.returncode == (2 if command == "nonsense" else 0)
    assert "Traceback" not in done.stderr and "Broken" not in done.stderr


def test_a_lock_ends_with_the_process_that_holds_it(opened_project: Project) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom flows.lock import registry_lock\n"
        "from tests.flows.projects import open_project\n"
        "tracking = open_project(Path(sys.argv[1])).tracking\n"
        "with registry_lock(tracking, 'student'):\n    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(opened_project.root)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    entered = threading.Event()

    def wait_for_it() -> None:
        with registry_lock(opened_project.tracking, "student"):
            entered.set()

    threading.Thread(target=wait_for_it, daemon=True).start()
    assert not entered.wait(1)
    holder.kill()
    holder.communicate()
    assert entered.wait(10)


def test_a_server_that_other_machines_may_write_to_needs_a_prefect_server(
    opened_project: Project,
) -> None:
    server = replace(opened_project.tracking, database=None, uri="https://mlflow.example")
    with temporary_settings({PREFECT_API_URL: None}):  # other tests may have started a server
        with pytest.raises(PipelineError, match=r"other machines may write .* PREFECT_API_URL"):
            check_lock(server)
        check_lock(replace(server, uri="http://127.0.0.1:5000"))


@pytest.mark.usefixtures("prefect_server")
def test_writers_of_a_shared_server_share_a_limit_of_prefect(opened_project: Project) -> None:
    server = replace(opened_project.tracking, database=None, uri="https://mlflow.example")
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        with registry_lock(server, "student/of us"):
            inside += 1
            most = max(most, inside)
            time.sleep(0.3)
            inside -= 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert (inside, most) == (0, 1)


@pytest.mark.usefixtures("prefect_server")
def test_a_holder_that_prefect_cancels_fails_in_one_line(opened_project: Project) -> None:
    server = replace(opened_project.tracking, database=None, uri="https://mlflow.example")
    message = r"Prefect at .* failed while student was locked \(the lock could not be renewed\)"
    with pytest.raises(PipelineError, match=message), registry_lock(server, "student"):
        raise asyncio.CancelledError
    with registry_lock(server, "student"):  # its slot is free again
        pass
