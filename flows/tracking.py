"""The MLflow server, or the local database, that keeps the record."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import mlflow
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from requests.exceptions import RequestException
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from firstkd.errors import ConfigError, PipelineError
from firstkd.settings import RecordSettings
from tasks.record_place import place_of, shown

ERRORS = (MlflowException, SQLAlchemyError, RequestException)
ARTIFACTS = "artifacts"
"""The artifact folder beside a local database."""


@dataclass(frozen=True)
class Tracking:
    client: MlflowClient
    uri: str
    experiment_id: str
    database: Path | None
    """None if the record is on a server."""

    @property
    def shown(self) -> str:
        """The address without what may be secret."""
        return shown(make_url(self.uri))

    @contextmanager
    def as_default(self) -> Iterator[None]:
        """Make this the address for MLflow's module functions, some of which accept no other.

        MLflow keeps it in the process and in the environment, so both are restored afterwards.
        """
        outside = os.environ.get("MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(self.uri)
        try:
            yield
        finally:
            mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # resets it
            os.environ.pop("MLFLOW_TRACKING_URI", None)
            if outside is not None:
                os.environ["MLFLOW_TRACKING_URI"] = outside

    def run_files(self, run_id: str, path: str, scratch: Path) -> Path:
        """Return the path of a run's files; those on a server are downloaded to `scratch`."""
        return self._files(f"{self.client.get_run(run_id).info.artifact_uri}/{path}", scratch)

    def version_files(self, version: ModelVersion, path: str, scratch: Path) -> Path:
        """Return the path of a version's files; those on a server are downloaded to `scratch`."""
        uri = self.client.get_model_version_download_uri(version.name, str(version.version))
        return self._files(f"{uri}/{path}", scratch)

    def _files(self, uri: str, scratch: Path) -> Path:
        if self.database is None or urlsplit(uri).scheme != "file":
            return Path(download_artifacts(uri, dst_path=str(scratch), tracking_uri=self.uri))
        there = _path(uri)
        for index, part in enumerate(there.parts):  # the project may have been moved since
            here = self.database.parent.joinpath(*there.parts[index:])
            if part == ARTIFACTS and here.exists():
                return here
        return there


@contextmanager
def clear_errors(tracking: Tracking) -> Iterator[None]:
    """Turn a server failure during the body into one PipelineError that names the server."""
    try:
        yield
    except ERRORS as error:
        raise PipelineError(
            f"MLflow at {tracking.shown} failed ({_cause(error)}); fix it and run again. What "
            "was built so far is kept"
        ) from error


def open_tracking(root: Path, settings: RecordSettings) -> Tracking:
    """Connect to MLflow, creating the experiment (and a local database) if it is missing.

    MLFLOW_TRACKING_URI in the environment takes precedence over the settings. A local database's
    artifacts lie beside it; a server decides where its own lie. Raises PipelineError if nothing
    answers, and ConfigError for an address that cannot be used.
    """
    _silence()
    url, database = place_of(root, settings)
    if database:
        url = url.set(database=str(database))
        database.parent.mkdir(parents=True, exist_ok=True)
    uri = url.render_as_string(hide_password=False)
    try:
        client = MlflowClient(uri)
        artifacts = database.with_name(ARTIFACTS) if database else None
        return Tracking(client, uri, _experiment(client, settings.experiment, artifacts), database)
    except ERRORS as error:
        what, way = f"MLflow at {url.render_as_string()} does not answer", "start it"
        if database:
            what, way = f"MLflow's database {database} cannot be read", "restore it or move it away"
        raise PipelineError(
            f"{what} ({_cause(error)}); {way}, or correct MLFLOW_TRACKING_URI or "
            "record.tracking_uri in params.yaml"
        ) from error


def _experiment(client: MlflowClient, name: str, artifacts: Path | None) -> str:
    """Return the id of the experiment, creating it if it is missing."""
    found = client.get_experiment_by_name(name)
    if found and artifacts and _was_moved(found.artifact_location, artifacts):
        # an experiment's location cannot be changed, and a run writes where its experiment says
        client.rename_experiment(found.experiment_id, f"{name} (moved, {found.experiment_id})")
        found = None
    if found is None:
        try:
            client.create_experiment(name, artifacts.as_uri() if artifacts else None)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # by another process just now
                raise
        found = client.get_experiment_by_name(name)
    assert found is not None
    if found.lifecycle_stage == "deleted":
        raise ConfigError(
            f"the MLflow experiment {name!r} was deleted; bring it back with `mlflow experiments "
            f"restore --experiment-id {found.experiment_id}`, or name another in record.experiment"
        )
    return str(found.experiment_id)


def experiments(client: MlflowClient, name: str) -> list[str]:
    """Return the ids of the experiment and of those it replaced when the project was moved."""
    found = {each.name: each.experiment_id for each in client.search_experiments()}
    return [i for each, i in found.items() if each == name or each.startswith(f"{name} (moved, ")]


def _was_moved(location: str, artifacts: Path) -> bool:
    """Whether an experiment's artifacts lie beside this database, but in another project folder."""
    there = _path(location)
    is_ours = urlsplit(location).scheme == "file" and there.parts[-2:] == artifacts.parts[-2:]
    return is_ours and there != artifacts


def _path(uri: str) -> Path:
    return Path(url2pathname(urlsplit(uri).path))


def _cause(error: BaseException) -> str:
    """Return the innermost reason; the outer messages wrap it in the address, three times over."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return " ".join(str(error).split())


def _silence() -> None:
    """Silence messages that the user can do nothing about."""
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.tracking.fluent"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # an example would load the student here
    warnings.filterwarnings("ignore", message=".*An input example was not provided")
