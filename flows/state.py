"""Where the project stands: what is stale and why, who is in charge, when it was last recorded.

Answers in two seconds: DVC is asked twice at once, and a local MLflow database is read as the
SQLite file that it is, since importing MLflow alone takes longer.
"""

import os
import sqlite3
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from ruamel.yaml import YAML

from firstkd.settings import RecordSettings, Settings
from flows.workspace import Workspace, WorkspaceBusyError

LOCK_TAG = "dvc_lock_sha256"  # flows/record.py, which would import MLflow
CHAMPION = "champion"
DECIDED_TAG = "decided_at"


@dataclass(frozen=True)
class StageState:
    name: str
    why: list[str]
    """What changed since it last ran; empty where it is up to date or only waits."""
    waits_for: list[str]
    """Stale stages whose outputs it reads."""

    @property
    def in_a_word(self) -> str:
        return "stale" if self.why else "waits" if self.waits_for else "up to date"


@dataclass(frozen=True)
class Record:
    """What MLflow says; None where there is nothing yet."""

    champion: str | None
    since: str | None
    last_run: str | None
    last_run_at: str | None


@dataclass(frozen=True)
class State:
    stages: list[StageState]
    """Unknown, so none, while DVC is at work."""
    record: Record
    busy: str | None
    """Who is at work here, if somebody is."""


def read_state(workspace: Workspace, settings: Settings) -> State:
    with ThreadPoolExecutor() as pool:
        changes, names = pool.submit(workspace.changes), pool.submit(workspace.stages)
        record = pool.submit(read_record, workspace.root, settings.record)
        lock = workspace.lock() if (workspace.root / "dvc.lock").exists() else {}
        params = YAML(typ="safe", pure=True).load(workspace.root / "params.yaml")
        try:
            changed = changes.result()
        except WorkspaceBusyError as error:
            return State([], record.result(), str(error))
        why = {name: explain(found, _params(lock, name), params) for name, found in changed.items()}
        waits = waiting(lock, list(why))
        stages = [
            StageState(name, why.get(name, []), waits.get(name, [])) for name in names.result()
        ]
        return State(stages, record.result(), None)


def _params(lock: Mapping[str, Any], stage: str) -> dict[str, Any]:
    found: dict[str, Any] = lock.get(stage, {}).get("params", {}).get("params.yaml", {})
    return found


def explain(changes: list[Any], before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Put what `dvc status --json` says of a stage into words.

    It names whole sections of params.yaml; which key is another is told from the settings that
    the stage last ran with (`before`, of dvc.lock) and the present ones.
    """
    words = []
    for change in changes:
        if isinstance(change, str):  # "changed command", "always changed"
            words.append(change)
            continue
        for what in change.values():
            for path, how in what.items():
                if isinstance(how, str):
                    words.append(f"{path} {how}")
                    continue
                for section, state in how.items():
                    found = differences(before.get(section), _look_up(now, section), section)
                    words += [f"{path}: {key}" for key in found or [f"{section} {state}"]]
    return words


def differences(before: Any, now: Any, key: str) -> list[str]:
    """Return `key before → now` for each key in which two settings differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(name for name in now if name not in before)]
        parts = [differences(before.get(n), now.get(n), f"{key}.{n}") for n in keys]
        return [words for part in parts for words in part]
    return [] if before == now else [f"{key} {before} → {now}"]


def _look_up(values: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return values


def waiting(lock: Mapping[str, Any], stale: list[str]) -> dict[str, list[str]]:
    """Return for each stage the stale ones that it depends on, directly or through others."""
    made_by = {out["path"]: name for name, entry in lock.items() for out in entry.get("outs", [])}
    upstream = {
        name: {
            maker
            for dep in entry.get("deps", [])
            for out, maker in made_by.items()
            if maker != name and _overlap(dep["path"], out)
        }
        for name, entry in lock.items()
    }

    def all_upstream(name: str) -> set[str]:
        direct = upstream.get(name, set())
        return direct.union(*map(all_upstream, direct))

    return {name: [other for other in stale if other in all_upstream(name)] for name in lock}


def _overlap(first: str, second: str) -> bool:
    """Whether one path is the other or lies in it."""
    a, b = PurePosixPath(first), PurePosixPath(second)
    return a.is_relative_to(b) or b.is_relative_to(a)


def read_record(root: Path, settings: RecordSettings) -> Record:
    """Raises PipelineError when an MLflow server does not answer."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or settings.tracking_uri
    if urlsplit(uri).scheme != "sqlite":
        return _ask_server(root, settings)
    database = (root / uri.removeprefix("sqlite:///")).resolve()
    return _read_database(database, settings) if database.exists() else Record(*[None] * 4)


def _read_database(path: Path, settings: RecordSettings) -> Record:
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
        name = settings.registered_model
        champion = database.execute(
            "SELECT version FROM registered_model_aliases WHERE name = ? AND alias = ?",
            (name, CHAMPION),
        ).fetchone()
        since = (
            champion
            and database.execute(
                "SELECT value FROM model_version_tags WHERE name = ? AND version = ? AND key = ?",
                (name, champion[0], DECIDED_TAG),
            ).fetchone()
        )
        run = database.execute(
            "SELECT runs.run_uuid, runs.start_time FROM runs"
            " JOIN tags ON tags.run_uuid = runs.run_uuid AND tags.key = ?"
            " JOIN experiments ON experiments.experiment_id = runs.experiment_id"
            " WHERE runs.lifecycle_stage = 'active' AND experiments.name = ?"
            " ORDER BY runs.start_time DESC LIMIT 1",
            (LOCK_TAG, settings.experiment),
        ).fetchone()
    return Record(
        champion=str(champion[0]) if champion else None,
        since=since[0] if since else None,
        last_run=run[0] if run else None,
        last_run_at=_time(run[1]) if run else None,
    )


def _ask_server(root: Path, settings: RecordSettings) -> Record:
    from flows import registry, tracking

    server = tracking.open_tracking(root, settings)
    name = settings.registered_model
    champion = registry.aliases(server, name).get(CHAMPION)
    tags = server.client.get_model_version(name, champion).tags if champion else {}
    runs = server.client.search_runs(
        [server.experiment_id],
        f"tags.{LOCK_TAG} LIKE '%'",
        max_results=1,
        order_by=["attributes.start_time DESC"],
    )
    return Record(
        champion=champion,
        since=tags.get(DECIDED_TAG),
        last_run=runs[0].info.run_id if runs else None,
        last_run_at=_time(runs[0].info.start_time) if runs else None,
    )


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
