"""Where the record is kept: the address of an MLflow server or of a local database."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from firstkd.errors import ConfigError
from firstkd.settings import RecordSettings
from tasks.machine import check_place


def place_of(root: Path, settings: RecordSettings) -> tuple[URL, Path | None]:
    """Return MLflow's address, and the path of its SQLite database if it uses one.

    Raises ConfigError for a place that params.yaml, which others may write, must not name.
    """
    url = address_of(settings)
    database = database_at(root, url)
    if "MLFLOW_TRACKING_URI" not in os.environ:
        if database and not database.is_relative_to(root.resolve()):
            raise ConfigError(
                f"record.tracking_uri: {database} is outside {root.resolve()}, but params.yaml "
                "may only name a database inside it; set MLFLOW_TRACKING_URI instead"
            )
        is_server = url.drivername in ("http", "https")
        if url.password or (url.query and not database) or (is_server and url.username):
            raise ConfigError(
                "record.tracking_uri in params.yaml contains a password, a token or a query, but "
                "git and MLflow keep params.yaml; put the whole address in MLFLOW_TRACKING_URI "
                "instead"
            )
    return url, database


def address_of(settings: RecordSettings) -> URL:
    """Return MLflow's address; raises ConfigError for one that cannot keep the record."""
    given = os.environ.get("MLFLOW_TRACKING_URI") or settings.tracking_uri
    if urlsplit(given).scheme in ("", "file"):
        raise ConfigError(
            f"MLflow's address {given!r} is a folder, which cannot keep a model registry; use a "
            "database such as sqlite:///mlflow/mlflow.db, or a server's https:// address"
        )
    try:
        return make_url(given)
    except ArgumentError as error:
        raise ConfigError(
            f"MLflow's address {given!r} is not a URI such as sqlite:/// or https://"
        ) from error


def where_runs_are(settings: RecordSettings) -> str:
    """Return a server's address, or the command that shows a database; without any password."""
    url = address_of(settings)
    if url.drivername in ("http", "https"):
        return shown(url)
    return f"mlflow ui --backend-store-uri {shown(url)}"


def shown(url: URL) -> str:
    """Return an address without what may be secret: passwords, queries, a server's user names."""
    name = None if url.drivername in ("http", "https") else url.username
    plain = URL.create(url.drivername, name, None, url.host, url.port, url.database)
    return plain.render_as_string()


def database_at(root: Path, url: URL) -> Path | None:
    """Return the absolute path of an SQLite database; a relative one lies in the project.

    Raises ConfigError for one in a folder from which MLflow could not load models.
    """
    if url.get_backend_name() != "sqlite" or not url.database:
        return None
    database = (root / url.database).resolve()
    check_place(database)
    return database
