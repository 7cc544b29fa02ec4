"""The command line `firstkd`.

Everything heavy is imported inside the commands: `firstkd --help` answers at once.
"""

import atexit
import gc
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firstkd.errors import PipelineError
from flows import inspection_cli, knowledge_cli, operations_cli

if TYPE_CHECKING:
    from collections.abc import Callable

    from firstkd.settings import Settings
    from flows.retrain import Retrained
    from flows.tracking import Tracking
    from flows.workspace import Workspace

ROOT = Path(".")
INTERRUPTED = 130

app = typer.Typer(
    help="Distil a large fine-tuned language model into a small student that is accurate and "
    "knows when it is wrong. Without a command: run.\n\n"
    "Exit codes: 0 done, 1 an error or a check that failed, 2 a mistake in the command, "
    "130 interrupted.",
    epilog="Start with `firstkd doctor`, then `firstkd run`, then `firstkd report`.",
    pretty_exceptions_show_locals=False,
    add_completion=False,
)

operations_cli.add_to(app)


@app.callback(invoke_without_command=True)
def firstkd(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
) -> None:
    if context.invoked_subcommand is None:
        run()


@app.command()
def run() -> None:
    """Bring every stage up to date, record the result, and promote the student if it passes.

    Stages that are up to date are skipped; after an interruption it goes on from the last finished
    one. Example: `firstkd run`
    """
    from firstkd.settings import load_settings
    from flows.terminal import Terminal, terminal
    from flows.workspace import Workspace
    from tasks.graph import refresh_graph

    settings = load_settings(ROOT / "params.yaml")  # before any server is started
    refresh_graph(ROOT, settings)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    here = Workspace(ROOT.resolve())
    if nothing_to_do(here, settings):
        return
    retrain = _quiet_flow(here, settings)
    terminal.set(Terminal())
    retrained = retrain(str(here.root))

    from flows.summary import print_summary

    print_summary(ROOT, settings, retrained)


@app.command()
def graph(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail if dvc.yaml is out of date.")
    ] = False,
) -> None:
    """Write dvc.yaml, the graph of stages, as it follows from params.yaml.

    `firstkd run` does so itself; call it before `dvc repro` when models or signals have changed.
    Example: `firstkd graph`
    """
    from firstkd.settings import load_settings
    from tasks.graph import check_graph, write_graph

    settings = load_settings(ROOT / "params.yaml")
    if check:
        check_graph(ROOT, settings)
    elif write_graph(ROOT, settings):
        typer.echo("dvc.yaml is written")
    else:
        typer.echo("dvc.yaml is up to date")


@app.command()
def record() -> None:
    """Write the present state into MLflow and register its student, as after `dvc repro`."""
    from firstkd.settings import load_settings
    from flows import promotion, registry, tracking, workspace
    from flows.notification import announce
    from flows.record import record as record_state

    settings = load_settings(ROOT / "params.yaml")
    here = workspace.Workspace(ROOT.resolve())
    with here.exclusive():
        if stale := sorted(here.stale()):
            raise PipelineError(
                f"dvc.lock does not describe the present files of {', '.join(stale)}; "
                "run `firstkd run` or `dvc repro` first"
            )
        server = tracking.open_tracking(here.root, settings.record)
        with tracking.clear_errors(server):
            recorded = record_state(here, settings, server)
            version = registry.register(here, settings, server, recorded.run_id)
            verdict = promotion.promote(here, settings, server, version)
            announce(settings.retrain.webhook, here, server, version)
    known = "" if recorded.is_new else " (it was recorded before)"
    typer.echo(f"run {recorded.run_id}{known}: {version.name} v{version.version}")
    typer.echo(verdict.in_words(f"v{version.version}"))


inspection_cli.add_to(app)
knowledge_cli.add_to(app)


def nothing_to_do(here: "Workspace", settings: "Settings") -> bool:
    """Say so where the present state is up to date, recorded, decided on and published.

    The flow would find the same, after the many seconds that a Prefect server takes to start.
    """
    if not (here.root / "dvc.lock").exists() or here.stale():
        return False
    from flows import tracking

    server = tracking.open_tracking(here.root, settings.record)
    with tracking.clear_errors(server):
        return _is_concluded(here, settings, server)


def _is_concluded(here: "Workspace", settings: "Settings", server: "Tracking") -> bool:
    from flows import promotion, publish, registry
    from flows.notification import is_announced

    version = registry.find_version(here, settings, server)
    if version is None or promotion.standing(settings, server, version) is None:
        return False
    if registry.can_be_rebuilt_now(here, version) or not is_announced(version):
        return False
    if settings.publish.push or settings.publish.branch:
        run = server.client.get_run(registry.run_of(version))
        if not publish.is_published(settings.publish, run.data.tags):
            return False
    name = settings.record.registered_model
    champion = registry.aliases(server, name).get(promotion.CHAMPION)
    in_charge = f"{name} v{champion}" if champion else "none"
    typer.echo(f"Nothing has changed; the champion is {in_charge}.")
    return True


def _quiet_flow(here: "Workspace", settings: "Settings") -> "Callable[[str], Retrained]":
    """Import the flow with Prefect's own messages kept to its log, and make what it needs ready.

    The stages' output and errors are shown by this command line; Prefect would repeat them, with
    tracebacks, through its console handler.
    """
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "WARNING")
    from flows.prefect_server import server_starting

    with server_starting():  # which takes as long as these two
        from flows.retrain import retrain
        from flows.tracking import open_tracking

        open_tracking(here.root, settings.record)

    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).propagate = False
    return retrain


def main() -> None:
    """Run the command line: an error of the user's is one line and exit code 1."""
    atexit.register(gc.freeze)  # else ending looks through all imported modules, for two seconds
    try:
        app()
    except PipelineError as error:
        if "--debug" in sys.argv:
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("interrupted; `firstkd run` goes on from the last finished stage", err=True)
        sys.exit(INTERRUPTED)
