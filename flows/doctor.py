"""Check that everything is ready for a run: machine, settings, DVC, MLflow and Prefect."""

import os
from collections.abc import Iterator
from pathlib import Path

from firstkd.errors import ConfigError, PipelineError
from firstkd.proxies import check_proxies
from firstkd.settings import RecordSettings, load_settings
from flows.workspace import Workspace
from tasks.machine import Check, examine_machine, examine_threads, server_answers, shown
from tasks.record_place import address_of, database_at


def examine(root: Path) -> Iterator[Check]:
    """Yield each check; invalid settings or proxies end them early."""
    yield from examine_machine(root)
    try:
        settings = load_settings(root / "params.yaml")
    except ConfigError as error:
        yield Check("settings", "wrong", str(error), "correct params.yaml")
        return
    yield examine_threads(settings.runtime)
    yield from _dvc(root)
    try:
        check_proxies()
    except ConfigError as error:
        yield Check("proxy", "wrong", str(error), "correct or unset it")
        return
    yield _mlflow(root, settings.record)
    if url := os.environ.get("PREFECT_API_URL"):
        fix = "run `prefect server start`, or unset PREFECT_API_URL"
        yield server_answers("prefect", f"{url}/health", fix)
    else:
        yield Check("prefect", "ok", "no server configured; each run starts its own")


def _dvc(root: Path) -> Iterator[Check]:
    workspace = Workspace(root)
    try:
        stages = workspace.stages()
    except PipelineError as error:
        yield Check("dvc", "wrong", str(error), "run `dvc init`, or correct dvc.yaml")
        return
    yield Check("dvc", "ok", f"{len(stages)} stages")
    listed = workspace.remote_urls()
    if not listed:
        way = "to share results: `dvc remote add --default NAME URL`"
        yield Check("remote", "ok", f"none; everything stays on this machine ({way})")
    for name, url in listed.items():
        found = f"{name}: {shown(url)}"
        if "://" in url:
            yield Check("remote", "ok", f"{found} (`dvc status --cloud` checks it)")
        elif os.access(url, os.W_OK):
            yield Check("remote", "ok", found)
        else:
            fix = f"create the folder, or run `dvc remote modify {name} url PLACE`"
            yield Check("remote", "wrong", f"{found} cannot be written to", fix)


def _mlflow(root: Path, settings: RecordSettings) -> Check:
    fix = "start it, or correct MLFLOW_TRACKING_URI or record.tracking_uri in params.yaml"
    try:
        url = address_of(settings)
        database = database_at(root, url)
    except ConfigError as error:
        return Check("mlflow", "wrong", str(error), fix)
    if url.drivername in ("http", "https"):
        return server_answers("mlflow", f"{url.render_as_string(hide_password=False)}/health", fix)
    if database is None:
        return Check("mlflow", "warn", f"{url.render_as_string()} was not checked")
    there = next(path for path in [database, *database.parents] if path.exists())
    if not os.access(there, os.W_OK):
        return Check("mlflow", "wrong", f"{there} cannot be written to", "change its permissions")
    return Check("mlflow", "ok", f"{database}{'' if database.exists() else ' (not created yet)'}")
