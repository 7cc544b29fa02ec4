"""The command line `firstkd`.

Heavy modules are imported inside the commands, so that `firstkd --help` answers at once.
"""

import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firstkd.errors import PipelineError
from firstkd.files import disk_refusal
from firstkd.outputs import tolerant
from flows import inspection_cli, operations_cli
from tasks import cli as tasks_cli

if TYPE_CHECKING:
    from flows.conclude import Concluded

ROOT = Path(".")
INTERRUPTED = 130

app = typer.Typer(
    help="Distil a large fine-tuned language model into a small student that is accurate and "
    "knows when it is wrong. Without a command, it runs `firstkd run`.\n\n"
    "Exit codes: 0 success, 1 an error or a failed check, 2 a usage error, "
    "130 interrupted.",
    epilog="Start with `firstkd doctor`, then `firstkd run`, then `firstkd report`.",
    pretty_exceptions_show_locals=False,
    add_completion=False,
)

operations_cli.add_to(app)


@app.callback(invoke_without_command=True)
def firstkd(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show an error's traceback.")] = False,
) -> None:
    if context.invoked_subcommand is None:
        run()


@app.command()
def run() -> None:
    """Bring every stage up to date, record the result, and promote the student if it passes.

    Stages that are up to date are skipped; after an interruption it resumes from the last finished
    one. Example: `firstkd run`
    """
    from firstkd.settings import load_settings
    from flows.workspace import Workspace
    from tasks.graph import refresh_graph

    settings = load_settings(ROOT / "params.yaml")  # before any server is started
    refresh_graph(ROOT, settings)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    here, concluded = Workspace(ROOT.resolve()), None
    try:
        if (here.root / "dvc.lock").exists() and not here.stale():
            concluded = _conclude(publishes=True)
            if not concluded.recorded.is_new and concluded.verdict.outcome != "promoted":
                champion = concluded.champion and f"{concluded.version.name} v{concluded.champion}"
                typer.echo(f"Nothing has changed; champion: {champion or 'none yet'}.")
                return
        else:
            concluded = _retrain(here.root)
    except KeyboardInterrupt:
        typer.echo("interrupted; `firstkd run` resumes from the last finished stage", err=True)
        raise typer.Exit(INTERRUPTED) from None

    from tasks.summary import print_summary

    number = str(concluded.version.version)
    print_summary(ROOT, settings, number, concluded.verdict, concluded.champion)


@app.command()
def record() -> None:
    """Record the current state in MLflow and register its student, for use after `dvc repro`."""
    from flows.project import load_workspace

    workspace, _ = load_workspace(ROOT)
    if stale := sorted(workspace.stale()):
        raise PipelineError(
            f"dvc.lock does not match the current files of {', '.join(stale)}; "
            "run `firstkd run` or `dvc repro` first"
        )
    found = _conclude(publishes=False)
    known = "" if found.recorded.is_new else " (already recorded)"
    who = f"v{found.version.version}"
    typer.echo(f"run {found.recorded.run_id}{known}: {found.version.name} {who}")
    typer.echo(found.verdict.in_words(who))


inspection_cli.add_to(app)
tasks_cli.add_to(app)


def _conclude(publishes: bool) -> "Concluded":
    """Conclude a state whose stages are up to date; this needs no Prefect server."""
    from flows.conclude import conclude
    from flows.lock import check_lock
    from flows.project import opened
    from flows.publish import publish_once
    from tasks.terminal import Terminal

    with opened(ROOT) as project, project.workspace.exclusive():
        check_lock(project.tracking)
        found = conclude(project)
        for words in publish_once(project, found.version, Terminal()) if publishes else []:
            typer.echo(words)
    return found


def _retrain(root: Path) -> "Concluded":
    """Run the flow; Prefect's own messages go only to its log.

    This command line shows the stages' output and errors; Prefect's console handler would repeat
    them, with tracebacks.
    """
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "WARNING")
    from flows.prefect_server import server_starting

    with server_starting():  # this import takes just as long
        from flows.retrain import retrain
    from tasks.terminal import Terminal, terminal

    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).propagate = False
    terminal.set(Terminal())
    return retrain(str(root)).concluded


def main() -> None:
    """Run the command line; a user error prints one line and exits with 1."""
    sys.stdout, sys.stderr = tolerant(sys.stdout), tolerant(sys.stderr)
    try:
        app()
    except (PipelineError, OSError) as error:
        known = error if isinstance(error, PipelineError) else disk_refusal(error)
        if known is None or "--debug" in sys.argv:
            raise
        typer.echo(f"error: {known}", err=True)
        sys.exit(1)
