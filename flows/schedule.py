"""Retrain on a schedule: a process in which a lasting Prefect server starts runs.

Prefect's embedded server lives only as long as a run, and never starts a scheduled one.
"""

from pathlib import Path
from zoneinfo import ZoneInfo

from prefect.schedules import Cron, Schedule
from prefect.types.entrypoint import EntrypointType

from firstkd.errors import ConfigError, PipelineError
from flows.prefect_server import answering_server
from flows.retrain import retrain
from flows.workspace import Workspace


def make_schedule(cron: str, timezone: str) -> Schedule:
    """Return the schedule; raises ConfigError for an invalid cron string or timezone."""
    try:
        ZoneInfo(timezone)
    except (KeyError, ValueError) as error:
        raise ConfigError(f"--timezone {timezone!r} is unknown; use e.g. UTC") from error
    try:
        return Cron(cron, timezone=timezone)
    except ValueError as error:
        raise ConfigError(f"--cron {cron!r} is not a cron string such as '0 3 * * 1'") from error


def check_server() -> str:
    """Return the address of the Prefect server; raises PipelineError if no lasting one answers."""
    url = answering_server()
    if url is None:
        raise PipelineError(
            "a schedule needs a running Prefect server: start one with "
            "`prefect server start`, and point to it with "
            "`export PREFECT_API_URL=http://127.0.0.1:4200/api`"
        )
    return url


def deployment_name(root: Path) -> str:
    """Return a name that differs between two clones on one server."""
    return f"{root.name}-{Workspace(root).place[:6]}"


def serve(root: Path, schedule: Schedule) -> None:
    """Run the schedule until this process ends, which pauses it.

    A retraining that falls due while another runs waits for it. Prefect's own limit, kept in its
    server, is not used: a crash of the machine would leave its slot taken.
    """
    retrain.serve(
        name=deployment_name(root),
        schedule=schedule,
        parameters={"root": str(root)},
        limit=1,
        entrypoint_type=EntrypointType.MODULE_PATH,  # found from any working folder
        print_starting_message=False,
    )
