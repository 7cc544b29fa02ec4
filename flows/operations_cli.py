"""The commands of operations: who is in charge and why, and what comes from or goes elsewhere.

Everything heavy is imported inside the commands, as in flows/cli.py.
"""

from pathlib import Path
from typing import Annotated

import typer

from firstkd.errors import ConfigError

ROOT = Path(".")

Name = Annotated[str, typer.Argument(help="A signal of tokens in params.yaml.")]
Split = Annotated[str, typer.Argument(help="train or calibration.")]
Lines = Annotated[Path, typer.Argument(help="JSON lines, one example each.")]


def add_to(app: typer.Typer) -> None:
    for command in (
        promote,
        rollback,
        history,
        ask,
        serve,
        collect,
        schedule,
        reproduce,
        import_knowledge,
        export_knowledge,
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
            help="Leave out the comparison with the champion, e.g. if that cannot be measured "
            "on changed test questions; the limits on the version itself hold.",
        ),
    ] = False,
) -> None:
    """Let a registered version through the gate, and put it in charge if it passes."""
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
    """Put the champion's predecessor back in charge."""
    from firstkd.notify import notify
    from flows import promotion
    from flows.project import opened

    with opened(ROOT) as project:
        old, new = promotion.rollback(project)
        words = f"The champion is {project.model} v{new}; v{old} was rolled back."
        typer.echo(words)
        notify(project.settings.retrain.webhook, project.root, "rolled back", words)


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
            tags.get(promotion.DECISION_TAG, "not decided on"),
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
            help="A possible answer; name two or more, each with --choice. By default those that "
            "all questions shared on which its confidence was calibrated, e.g. yes and no.",
        ),
    ] = None,
) -> None:
    """Let the champion answer a question, with its calibrated confidence."""
    from flows.project import opened

    if choice and len(choice) == 1:
        raise ConfigError("name at least two possible answers, each with --choice")
    with opened(ROOT) as project:
        from flows import serve  # brings torch

        served = serve.newest(project)
    assert served is not None
    answerer, name = served.answerer, served.name
    [found] = answerer.answer([question], [choice or None])
    said, sure = f"confidence {found.confidence:.2f}", answerer.promise
    if found.abstain:
        said = f"best guess: {found.answer}, {said}"
        said += "" if sure and sure.threshold is None else f" < {answerer.abstain_below:.3g}"
    typer.echo(f"{'abstain' if found.abstain else found.answer}  ({said}, {name})")
    if sure:
        typer.echo(f"{name}: {sure}")


def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine's need a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8300,
    token_file: Annotated[
        Path | None,
        typer.Option(help="Holds the token clients must show, instead of FIRSTKD_SERVE_TOKEN."),
    ] = None,
) -> None:
    """Serve the champion over HTTP: it answers, abstains or passes on, as `serve` says.

    Takes up each new champion without a restart. Example: `firstkd serve --port 8300`
    """
    import logging

    from flows.project import opened

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    with opened(ROOT) as project:
        from flows import serve

        serve.serve(project, host, port, token_file)


def collect() -> None:
    """Write the questions that were served to sources/traffic.jsonl, to learn from."""
    from tasks.collect import collect

    path, count = collect(ROOT)
    typer.echo(f"{count:,} questions in {path}; name it in fetch.datasets with role: unlabelled")


def schedule(
    cron: Annotated[
        str, typer.Option(help="When to retrain, as in cron: '0 3 * * 1' is Monday at 3.")
    ],
    timezone: Annotated[str, typer.Option(help="Of the schedule.")] = "UTC",
) -> None:
    """Retrain on a schedule, as long as this command runs; where nothing is new, do nothing."""
    from firstkd.settings import load_settings
    from flows import schedule

    load_settings(ROOT / "params.yaml")
    when = schedule.make_schedule(cron, timezone)
    url = schedule.check_server()
    root = ROOT.resolve()
    typer.echo(f"Retraining {root} on schedule as {schedule.deployment_name(root)} at {url}")
    typer.echo(f"Now and then: prefect deployment run 'retrain/{schedule.deployment_name(root)}'")
    schedule.serve(root, when)


def reproduce(
    version: Annotated[str, typer.Argument(help="Number or alias of the version.")],
    rebuild: Annotated[
        bool,
        typer.Option("--rebuild", help="Run every stage again, on what was fetched then."),
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
        typer.echo(f"{who} is not reproduced: {len(result.differences)} differences; {result.way}.")
        typer.echo(f"Its files are in {result.folder}")
        raise typer.Exit(1)
    typer.echo(f"{who} is reproduced, byte for byte; {result.way}.")


def export_knowledge(name: Name, split: Split, path: Lines) -> None:
    """Write a signal's token decisions as {token id: log-probability} per position.

    Example: firstkd export-knowledge tokens train knowledge.jsonl
    """
    from tasks.knowledge import export_split

    store = export_split(ROOT, name, split, path)
    typer.echo(f"{len(store.keys):,} examples, {len(store):,} tokens in {path}")


def import_knowledge(name: Name, split: Split, path: Lines) -> None:
    """Replace a split of a signal of tokens by what another tool has captured.

    The teacher, the tokenizer and the data are taken to be this pipeline's; example by example the
    number of tokens is checked. `dvc commit --force signal-NAME` then makes it the stage's result.

    Example: firstkd import-knowledge tokens train captured.jsonl
    """
    from tasks.knowledge import import_split

    store = import_split(ROOT, name, split, path)
    typer.echo(f"{len(store.keys):,} examples, {len(store):,} tokens in {store.folder}")
    if lacks := ", ".join(store.manifest["incomplete"]):
        typer.echo(f"incomplete: {lacks}; what needs it will refuse this store")
