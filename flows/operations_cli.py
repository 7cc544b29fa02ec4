"""The commands of operations: who is in charge, since when and why.

Everything heavy is imported inside the commands, as in flows/cli.py.
"""

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from firstkd.settings import Settings
    from flows.tracking import Tracking
    from flows.workspace import Workspace

ROOT = Path(".")


def add_to(app: typer.Typer) -> None:
    for command in (promote, rollback, history, ask, schedule, reproduce):
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
            help="Leave out the comparison with the champion, e.g. where that cannot be measured "
            "on changed test questions; the limits on the version itself hold.",
        ),
    ] = False,
) -> None:
    """Let a registered version through the gate, and put it in charge if it passes."""
    from flows import promotion, registry
    from flows.notification import announce

    compared = not no_comparison
    with _opened() as (here, settings, server):
        name = settings.record.registered_model
        chosen = registry.get_version(server, name, version)
        decide = promotion.judge if dry_run else promotion.promote_on_request
        verdict = decide(here, settings, server, chosen, compared)
        if not dry_run:
            announce(settings.retrain.webhook, here, server, chosen)
    typer.echo(verdict.in_words(f"{name} v{chosen.version}"))
    if dry_run:
        typer.echo("This was a dry run: nothing has changed.")
    if not verdict.passed:
        raise typer.Exit(1)


def rollback() -> None:
    """Put the champion's predecessor back in charge."""
    from flows import promotion
    from flows.notification import notify

    with _opened() as (here, settings, server):
        old, new = promotion.rollback(settings, server)
    words = f"The champion is {settings.record.registered_model} v{new}; v{old} was rolled back."
    typer.echo(words)
    notify(settings.retrain.webhook, here, "rolled back", words)


def history() -> None:
    """Show every registered version with its numbers, the decision on it and its reasons."""
    from flows.history import history

    with _opened() as (_, settings, server):
        lines = list(history(settings, server))
    typer.echo("\n".join(lines) if lines else "No student has been registered yet.")


def ask(
    question: Annotated[str, typer.Argument(help="The question.")],
    choice: Annotated[
        list[str] | None,
        typer.Option(
            help="A possible answer; name two or more, each with --choice. By default those that "
            "all questions shared on which its confidence was calibrated, e.g. yes and no.",
        ),
    ] = None,
) -> None:
    """Let the champion answer a question, with its calibrated confidence."""
    from flows.serving import ask_champion

    with _opened() as (_, settings, server):
        version, answer, confidence, abstain = ask_champion(
            settings, server, question, choice or []
        )
    name = f"{settings.record.registered_model} v{version}"
    if abstain:
        limit = settings.serve.abstain_below
        typer.echo(
            f"abstain  (best guess: {answer}, confidence {confidence:.2f} < {limit}, {name})"
        )
    else:
        typer.echo(f"{answer}  (confidence {confidence:.2f}, {name})")


def schedule(
    cron: Annotated[
        str | None, typer.Option(help="When to retrain, as in cron: '0 3 * * 1' is Monday at 3.")
    ] = None,
    interval: Annotated[
        str | None, typer.Option(help="Or how often, in minutes, hours or days: 90m, 12h, 7d.")
    ] = None,
    timezone: Annotated[str, typer.Option(help="Of the schedule.")] = "UTC",
) -> None:
    """Retrain on a schedule, as long as this command runs; where nothing is new, do nothing."""
    from firstkd.settings import load_settings
    from flows import schedule

    load_settings(ROOT / "params.yaml")
    when = schedule.make_schedule(cron, interval, timezone)
    url = schedule.check_server()
    root = ROOT.resolve()
    typer.echo(f"Retraining {root} on schedule as {schedule.deployment_name(root)} at {url}")
    typer.echo(f"Now and then: prefect deployment run 'retrain/{schedule.deployment_name(root)}'")
    schedule.serve(root, when)


def reproduce(
    version: Annotated[int, typer.Argument(help="Number of the version.")],
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild",
            help="Run every stage again, on what was fetched then.",
        ),
    ] = False,
) -> None:
    """Bring a version back from its commit, and compare it with what the registry recorded."""
    from flows import registry
    from flows.reproduce import reproduce
    from flows.terminal import Terminal

    with _opened() as (here, settings, server):
        chosen = registry.get_version(server, settings.record.registered_model, version)
        result = reproduce(here, server, chosen, rebuild, Terminal())
    typer.echo("\n".join(result.compared))
    who = f"{chosen.name} v{chosen.version}"
    if result.differences:
        typer.echo(f"{who} is not reproduced: {len(result.differences)} differences; {result.way}.")
        typer.echo(f"Its files are in {result.folder}")
        raise typer.Exit(1)
    typer.echo(f"{who} is reproduced, byte for byte; {result.way}.")


@contextmanager
def _opened() -> "Iterator[tuple[Workspace, Settings, Tracking]]":
    from firstkd.settings import load_settings
    from flows import tracking, workspace

    settings = load_settings(ROOT / "params.yaml")
    root = ROOT.resolve()
    server = tracking.open_tracking(root, settings.record)
    with tracking.clear_errors(server):
        yield workspace.Workspace(root), settings, server
