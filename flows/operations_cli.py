"""The operations commands: decide who is in charge, answer questions, schedule and reproduce.

Heavy modules are imported inside the commands, as in flows/cli.py.
"""

from pathlib import Path
from typing import Annotated

import typer

from firstkd.errors import ConfigError

ROOT = Path(".")
CORRECTED = Path("sources/corrected.jsonl")
"""Where `firstkd collect` puts corrected questions."""


def add_to(app: typer.Typer) -> None:
    for command in (
        promote,
        rollback,
        recalibrate,
        history,
        ask,
        serve,
        schedule,
        reproduce,
    ):
        app.command()(command)


def promote(
    version: Annotated[
        str | None, typer.Option(help="Number or alias of the version; by default the newest.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what the gate would decide.")
    ] = False,
    no_comparison: Annotated[
        bool,
        typer.Option(
            "--no-comparison",
            help="Skip the comparison with the champion, e.g. if the champion cannot be measured "
            "on the changed test questions; the limits on the version itself still apply.",
        ),
    ] = False,
) -> None:
    """Put a registered version through the gate, and make it champion if it passes."""
    from flows import promotion, registry
    from flows.conclude import announce
    from flows.project import opened

    with opened(ROOT) as project:
        chosen = registry.get_version(project, version)
        if dry_run:
            champion = registry.aliases(project).get(promotion.CHAMPION)
            verdict, _ = promotion.judge(project, chosen, None if no_comparison else champion)
        else:
            verdict = promotion.promote(project, chosen, not no_comparison, again=True)
            announce(project, chosen)
    typer.echo(verdict.in_words(f"{chosen.name} v{chosen.version}"))
    if dry_run:
        typer.echo("This was a dry run: nothing has changed.")
    if not verdict.passed:
        raise typer.Exit(1)


def rollback() -> None:
    """Make the champion's predecessor champion again."""
    from firstkd.notify import notify
    from flows import promotion
    from flows.project import opened

    with opened(ROOT) as project:
        old, new = promotion.rollback(project)
        words = f"The champion is {project.model} v{new}; v{old} was rolled back."
        typer.echo(words)
        notify(project.settings.retrain.webhook, project.root, "rolled back", words)


def recalibrate(
    questions: Annotated[
        Path, typer.Argument(help="Labelled questions that no model was trained on.")
    ] = CORRECTED,
    version: Annotated[
        str, typer.Option(help="Number or alias of the version to recalibrate.")
    ] = "champion",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Fit and show the result; release nothing.")
    ] = False,
) -> None:
    """Fit a version's temperature and threshold to newer questions; release it through the gate.

    No model is trained. Examples: `firstkd recalibrate`, `firstkd recalibrate new.csv --dry-run`
    """
    from flows import promotion, recalibrate, registry
    from flows.conclude import announce
    from flows.lock import check_lock
    from flows.project import opened
    from tasks.corrections import recalibration_words

    with opened(ROOT) as project, project.workspace.exclusive():
        check_lock(project.tracking)
        chosen = registry.get_version(project, version)
        with recalibrate.recalibrated(project, chosen, questions) as fitted:
            typer.echo(recalibration_words(f"v{chosen.version}", fitted.metrics))
            if dry_run:
                typer.echo("This was a dry run: nothing has changed.")
                return
            new = recalibrate.register(project, chosen, fitted)
        verdict = promotion.promote(project, new)
        announce(project, new)
    typer.echo(verdict.in_words(f"{new.name} v{new.version}"))
    if not verdict.passed:
        raise typer.Exit(1)


def history() -> None:
    """Show every registered version with its numbers, the decision on it and its reasons."""
    from datetime import UTC, datetime

    from flows import promotion, registry
    from flows.project import opened

    with opened(ROOT) as project:
        aliases, versions = registry.aliases(project), registry.versions(project)
    for version in versions:
        tags, made = version.tags, datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
        roles = sorted(role for role, number in aliases.items() if number == str(version.version))
        words = [
            f"v{version.version}  {made:%Y-%m-%d %H:%M} UTC",
            f"accuracy {tags.get('test_accuracy', '–')}  ECE {tags.get('test_ece', '–')}",
            f"commit {tags.get('git_commit', '–')[:8]}",
            tags.get(promotion.DECISION_TAG, "undecided"),
            *([f"recalibrates v{root}"] if (root := tags.get(registry.RECALIBRATES_TAG)) else []),
            *([f"[{', '.join(roles)}]"] if roles else []),
        ]
        typer.echo("  ".join(words))
        for reason in tags.get(promotion.REASONS_TAG, "").splitlines():
            typer.echo(f"      {reason}")
    if not versions:
        typer.echo("No student has been registered yet.")


def ask(
    question: Annotated[str, typer.Argument(help="The question.")],
    choice: Annotated[
        list[str] | None,
        typer.Option(
            help="A possible answer; name two or more, each with --choice. Default: the choices "
            "that all its calibration questions shared, e.g. yes and no, or else its own words.",
        ),
    ] = None,
) -> None:
    """Let the champion answer a question, with its calibrated confidence."""
    from flows.project import opened

    if choice and len(choice) == 1:
        raise ConfigError("name at least two possible answers, each with --choice")
    with opened(ROOT) as project:
        from flows import serve  # imports torch

        served = serve.newest(project)
    assert served is not None
    answerer, name = served.answerer, served.name
    [found] = answerer.answer([question], [choice or None])
    said, limit = f"confidence {found.confidence:.2f}", found.threshold
    if found.abstain:
        said = f"best guess: {found.answer}, {said}"
        said += f" < {limit.abstain_below:.3g}" if limit.in_force()["threshold"] else ""
    typer.echo(f"{'abstain' if found.abstain else found.answer}  ({said}, {name})")
    if limit.promise:
        typer.echo(f"{name}: {limit.promise}")


def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on; a non-local one requires a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8300,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the token that clients must send; default: FIRSTKD_SERVE_TOKEN."
        ),
    ] = None,
) -> None:
    """Serve the champion over HTTP: it answers, abstains or passes on, as `serve` says.

    It switches to each new champion without a restart. Example: `firstkd serve --port 8300`
    """
    import logging

    from flows.project import opened

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(
        logging.WARNING
    )  # else it logs addresses, some of them secret
    with opened(ROOT) as project:
        from flows import serve

        serve.serve(project, host, port, token_file)


def schedule(
    cron: Annotated[
        str, typer.Option(help="When to retrain, in cron syntax: '0 3 * * 1' is Mondays at 03:00.")
    ],
    timezone: Annotated[str, typer.Option(help="Timezone of the schedule.")] = "UTC",
) -> None:
    """Retrain on a schedule while this command runs; skip runs when nothing has changed."""
    from firstkd.settings import load_settings
    from flows import schedule

    load_settings(ROOT / "params.yaml")
    when = schedule.make_schedule(cron, timezone)
    url = schedule.check_server()
    root = ROOT.resolve()
    typer.echo(f"Retraining {root} on schedule as {schedule.deployment_name(root)} at {url}")
    typer.echo(f"To retrain now: prefect deployment run 'retrain/{schedule.deployment_name(root)}'")
    schedule.serve(root, when)


def reproduce(
    version: Annotated[str, typer.Argument(help="Number or alias of the version.")],
    rebuild: Annotated[
        bool,
        typer.Option("--rebuild", help="Rerun every stage on the files fetched at the time."),
    ] = False,
) -> None:
    """Bring a version back from its commit, and compare it with what the registry recorded."""
    from flows import registry
    from flows.project import opened
    from flows.reproduce import reproduce
    from tasks.terminal import Terminal

    with opened(ROOT) as project:
        chosen = registry.get_version(project, version)
        result = reproduce(project, chosen, rebuild, Terminal())
    typer.echo("\n".join(result.compared))
    who = f"{chosen.name} v{chosen.version}"
    if result.differences:
        typer.echo(
            f"{who} was not reproduced (differences: {len(result.differences)}); {result.way}."
        )
        typer.echo(f"Its files are in {result.folder}")
        raise typer.Exit(1)
    typer.echo(f"{who} was reproduced byte for byte; {result.way}.")
