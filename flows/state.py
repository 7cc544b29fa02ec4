"""Where the project stands: what is stale and why, who is in charge, when it was last recorded."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ruamel.yaml import YAML

from firstkd.serving.drift import drift_lines
from firstkd.settings import RecordSettings, Settings
from flows.dvc import WorkspaceBusyError
from flows.workspace import Workspace
from tasks.layout import log_folder
from tasks.record_place import address_of, database_at
from tasks.staleness import StageState, stage_states


@dataclass(frozen=True)
class Record:
    """What MLflow has recorded; None for what is not there yet."""

    champion: str | None = None
    since: str | None = None
    last_run: str | None = None
    last_run_at: str | None = None


@dataclass(frozen=True)
class State:
    stages: list[StageState]
    """Empty while DVC is at work, since they are unknown then."""
    record: Record
    busy: str | None
    """Who is at work here, if anyone."""
    serving: list[str]
    """What this project's servers found about drift, and corrections about the promise."""


def read_state(workspace: Workspace, settings: Settings) -> State:
    """Raises PipelineError if an MLflow server does not answer."""
    with ThreadPoolExecutor() as pool:
        changes, names = pool.submit(workspace.changes), pool.submit(workspace.stages)
        record = read_record(workspace.root, settings.record)
        seen = drift_lines(log_folder(workspace.root, "drift"))
        try:
            changed = changes.result()
        except WorkspaceBusyError as error:
            return State([], record, str(error), seen)
    lock = workspace.lock() if (workspace.root / "dvc.lock").exists() else {}
    params = YAML(typ="safe", pure=True).load(workspace.root / "params.yaml")
    stages = stage_states(names.result(), changed, lock, params)
    return State(stages, record, None, seen)


def read_record(root: Path, settings: RecordSettings) -> Record:
    from flows import promotion, registry, tracking
    from flows.project import opened
    from flows.record import LOCK_TAG

    database = database_at(root, address_of(settings))
    if database and not database.exists():
        return Record()
    with opened(root) as project:
        champion = registry.aliases(project).get(promotion.CHAMPION)
        tags = registry.get_version(project, champion).tags if champion else {}
        runs = project.client.search_runs(
            tracking.experiments(project.client, settings.experiment),
            f"tags.{LOCK_TAG} LIKE '%' and attributes.status = 'FINISHED'",
            max_results=1,
            order_by=["attributes.start_time DESC"],
        )
    since = tags.get(promotion.TIME_TAG)
    if not runs:
        return Record(champion, since)
    made = datetime.fromtimestamp(runs[0].info.start_time / 1000, UTC)
    return Record(champion, since, runs[0].info.run_id, made.isoformat(timespec="seconds"))
