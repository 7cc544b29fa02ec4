"""The commands of operations: who is in charge, since when and why.

Everything heavy is imported inside the commands, as in flows/cli.py.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from firstkd.settings import Settings
    from flows.tracking import Tracking
    from flows.workspace import Workspace

ROOT = Path(".")


def add_to(app: typer.Typer) -> None:
    for command in (promote, rollback, history):
        app.command()(command)


def promote(
    version: Annotated[
        int | None, typer.Option(help="Number of the version; by default the newest.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what the gate would decide.")
    ] = False,
    no_comparison: Annotated[
        bool,
        typer.Option(
            "--no-comparison",
            help="Leave out the comparison with the champion, e.g. after the test questions "
            "changed; the limits on the version itself hold.",
        ),
    ] = False,
) -> None:
    """Let a registered version through the gate, and put it in charge if it passes."""
    from flows import promotion, registry

    here, settings, server = _open()
    name = settings.record.registered_model
    chosen = registry.get_version(server, name, version)
    if dry_run:
        verdict = promotion.judge(settings, server, chosen, compared=not no_comparison)
    else:
        verdict = promotion.promote_on_request(
            here, settings, server, chosen, compared=not no_comparison
        )
    typer.echo(verdict.in_words(f"{name} v{chosen.version}"))
    if dry_run:
        typer.echo("This was a dry run: nothing has changed.")
    if not verdict.passed:
        raise typer.Exit(1)


def rollback() -> None:
    """Put the champion's predecessor back in charge."""
    from flows import promotion

    here, settings, server = _open()
    old, new = promotion.rollback(here, settings, server)
    typer.echo(
        f"The champion is {settings.record.registered_model} v{new}; v{old} was rolled back."
    )


def history() -> None:
    """Show every registered version with its numbers, the decision on it and its reasons."""
    from flows.history import history

    _, settings, server = _open()
    lines = list(history(settings, server))
    typer.echo("\n".join(lines) if lines else "No student has been registered yet.")


def _open() -> "tuple[Workspace, Settings, Tracking]":
    from firstkd.settings import load_settings
    from flows import tracking, workspace

    settings = load_settings(ROOT / "params.yaml")
    root = ROOT.resolve()
    return workspace.Workspace(root), settings, tracking.open_tracking(root, settings.record)
