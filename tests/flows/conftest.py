"""A small real DVC project with an MLflow database, and a Prefect server for the session."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flows.workspace import Workspace
from tests.flows.projects import dvc, make_project, open_project

if TYPE_CHECKING:  # flows comes first, which turns MLflow's telemetry off
    from mlflow import MlflowClient

    from flows.project import Project


@pytest.fixture(scope="session", autouse=True)
def _own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep DVC and Prefect away from the user's own folders and servers."""
    home = tmp_path_factory.mktemp("home")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", path)
        patch.setenv("DVC_SITE_CACHE_DIR", str(home / "dvc"))
        patch.setenv("PREFECT_HOME", str(home / "prefect"))
        patch.delenv("PREFECT_API_URL", raising=False)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Path:
    """Return a project whose stages have run; tests work on copies of it."""
    root = tmp_path_factory.mktemp("built")
    make_project(root)
    (root / "mlflow").mkdir()
    shutil.copy(mlflow_template, root / "mlflow" / "mlflow.db")
    return root


@pytest.fixture
def project(built: Path, tmp_path: Path) -> Workspace:
    return Workspace(shutil.copytree(built, tmp_path / "project"))


@pytest.fixture
def opened_project(project: Workspace) -> "Project":
    """The project, connected to its record."""
    return open_project(project.root)


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty MLflow database; making one takes seconds, copying it none."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "template.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def lost_answer(monkeypatch: pytest.MonkeyPatch) -> Callable[["MlflowClient", str], None]:
    """Return a function that has a request made twice: MLflow's client asks again, where an answer
    is lost, and the server does it again.
    """

    def lose(client: "MlflowClient", request: str) -> None:
        once = getattr(client, request)

        def twice(*arguments: object, **named: object) -> object:
            once(*arguments, **named)
            return once(*arguments, **named)

        monkeypatch.setattr(client, request, twice)

    return lose


@pytest.fixture(scope="session")
def prefect_server(_own_environment: None) -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def undisturbed(request: pytest.FixtureRequest, tmp_path: Path) -> bytes:
    """The dvc.lock of the retraining that a test's `running` is about to make, left in peace."""
    copy = shutil.copytree(request.getfixturevalue("running").root, tmp_path / "undisturbed")
    dvc(copy, "repro", "--quiet")
    return (copy / "dvc.lock").read_bytes()
