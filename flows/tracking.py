"""The MLflow server, or the local database, that keeps the record."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from requests.exceptions import RequestException
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from firstkd.errors import ConfigError, PipelineError
from firstkd.settings import RecordSettings


@dataclass(frozen=True)
class Tracking:
    client: MlflowClient
    uri: str
    experiment_id: str

    @contextmanager
    def as_default(self) -> Iterator[None]:
        """Make this the address of MLflow's module functions, some of which have no other way.

        MLflow keeps it in the process and in the environment, so it is put back afterwards.
        """
        outside = os.environ.get("MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(self.uri)
        try:
            yield
        finally:
            mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # which resets it
            os.environ.pop("MLFLOW_TRACKING_URI", None)
            if outside is not None:
                os.environ["MLFLOW_TRACKING_URI"] = outside


@contextmanager
def clear_errors(tracking: Tracking) -> Iterator[None]:
    """Turn a server that fails on the way into one PipelineError that names it."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, RequestException) as error:
        address = make_url(tracking.uri).render_as_string()
        raise PipelineError(
            f"MLflow at {address} failed ({_cause(error)}); what was built is kept: see to the "
            "server and run it again"
        ) from error


def open_tracking(root: Path, settings: RecordSettings) -> Tracking:
    """Connect to MLflow, making the experiment (and a local database) when it is missing.

    MLFLOW_TRACKING_URI in the environment goes before the settings. A local database's artifacts
    lie beside it; a server decides for itself. Raises PipelineError when nothing answers, and
    ConfigError for a database outside the project that only params.yaml names.
    """
    _silence()
    from_outside = os.environ.get("MLFLOW_TRACKING_URI")
    given = from_outside or settings.tracking_uri
    try:
        url = make_url(given)
    except ArgumentError as error:
        raise ConfigError(
            f"MLflow's address {given!r} is no URI like sqlite:/// or https://"
        ) from error
    local = _local_database(root, url)
    if local and not from_outside and not local.is_relative_to(root.resolve()):
        raise ConfigError(
            f"record.tracking_uri: {local} is outside {root.resolve()}, where params.yaml may not "
            "have anything written; name it in MLFLOW_TRACKING_URI if that is meant"
        )
    if local:
        url = url.set(database=str(local))
        local.parent.mkdir(parents=True, exist_ok=True)
    if url.password and not from_outside:
        raise ConfigError(
            "record.tracking_uri in params.yaml holds a password, and params.yaml is kept by git "
            "and MLflow; give the whole address in MLFLOW_TRACKING_URI instead"
        )
    uri = url.render_as_string(hide_password=False)
    try:
        client = MlflowClient(uri)
        location = (local.parent / "artifacts").as_uri() if local else None
        return Tracking(client, uri, _experiment(client, settings.experiment, location))
    except (MlflowException, SQLAlchemyError) as error:
        raise PipelineError(
            f"MLflow at {url.render_as_string()} does not answer ({_cause(error)}); start it, or "
            "mend MLFLOW_TRACKING_URI or record.tracking_uri in params.yaml"
        ) from error


def _experiment(client: MlflowClient, name: str, location: str | None) -> str:
    """Return the id of the experiment, which is made when it is missing."""
    if client.get_experiment_by_name(name) is None:
        try:
            client.create_experiment(name, location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # by another in the same second
                raise
    found = client.get_experiment_by_name(name)
    assert found is not None
    if found.lifecycle_stage == "deleted":
        raise ConfigError(
            f"the MLflow experiment {name!r} was deleted; bring it back with `mlflow experiments "
            f"restore --experiment-id {found.experiment_id}`, or name another in record.experiment"
        )
    return str(found.experiment_id)


def _local_database(root: Path, url: URL) -> Path | None:
    """Return the absolute path of an SQLite database; a relative one lies in the project."""
    if url.get_backend_name() != "sqlite" or not url.database:
        return None
    return (root / url.database).resolve()


def _cause(error: Exception) -> str:
    """Return the innermost reason: the outer messages wrap it in the address, three times over."""
    reason: BaseException = error
    while reason.__cause__ or reason.__context__:
        reason = reason.__cause__ or reason.__context__ or reason
    return str(reason).splitlines()[0].rpartition(": ")[2]


def _silence() -> None:
    """Keep out of the user's terminal what the user can do nothing about."""
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.tracking.fluent"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        "The specified dataset source can be interpreted in multiple ways",
        "Hint: Inferred schema contains integer column",
        ".*An input example was not provided",  # it would load the student here
    ):
        warnings.filterwarnings("ignore", message=message)
