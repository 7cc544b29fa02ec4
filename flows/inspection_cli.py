"""The commands that inspect a project: status, compare, report, doctor.

Heavy modules are imported inside the commands, as in flows/cli.py.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(".")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def add_to(app: typer.Typer) -> None:
    for command in (status, compare, report, doctor):
        app.command()(command)


def status(as_json: AsJson = False) -> None:
    """Show which stages are stale and why, who is champion since when, and the last run.

    Examples: `firstkd status`, `firstkd status --json`
    """
    from firstkd.settings import load_settings
    from flows.state import read_state
    from flows.workspace import Workspace

    here, settings = Workspace(ROOT.resolve()), load_settings(ROOT / "params.yaml")
    state = read_state(here, settings)
    if as_json:
        _print_json(state)
        return
    if state.busy:
        typer.echo(state.busy)
    for stage in state.stages:
        why = "; ".join(stage.why) or ", ".join(stage.waits_for)
        typer.echo(f"{stage.in_a_word:<10}  {stage.name:<22}  {why}".rstrip())
    record, name = state.record, settings.record.registered_model
    since = f" since {record.since}" if record.since else ""
    typer.echo(
        f"champion: {f'{name} v{record.champion}{since}' if record.champion else 'none yet'}"
    )
    last = f"{record.last_run_at}, MLflow run {record.last_run}" if record.last_run else "none yet"
    typer.echo(f"last run: {last}")
    for line in state.serving:
        typer.echo(line)


def compare(
    version: Annotated[
        list[str] | None,
        typer.Option(help="A registered version to include, by number or alias; may be repeated."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the models of `evaluate.models` side by side, on every test set.

    Examples: `firstkd compare`, `firstkd compare --version 1 --version champion`,
    `firstkd compare --json`
    """
    from firstkd.settings import load_settings
    from tasks.tables import load_differences, load_metrics, print_comparison

    settings = load_settings(ROOT / "params.yaml")
    measured, elsewhere = load_metrics(ROOT, settings), []
    if version:
        from firstkd.files import sha256_of
        from flows import registry
        from flows.project import opened

        digest = sha256_of(ROOT / "data/prepare/test.parquet")
        with opened(ROOT) as project:
            for asked in version:
                found = registry.get_version(project, asked)
                shown = f"v{found.version}" + ("" if asked.isdecimal() else f", {asked}")
                measured[shown] = registry.load_metrics(project.tracking, found)
                if found.tags["test_sha256"] != digest:
                    elsewhere.append(shown)
    if as_json:
        _print_json(measured)
    else:
        student, differences = settings.record.student, load_differences(ROOT)
        for test_set in dict.fromkeys(name for each in measured.values() for name in each["sets"]):
            print_comparison(measured, test_set, student, differences)
    for name in elsewhere:
        said = f"{name} was measured on different test questions"
        typer.echo(f"{said}, so it cannot be compared with the others", err=True)


def report(
    no_open: Annotated[
        bool, typer.Option("--no-open", help="Do not open the page in a browser.")
    ] = False,
) -> None:
    """Bring the report page up to date, add cost and lineage, and open it.

    Example: `firstkd report --no-open`
    """
    from flows.page import build_page
    from flows.project import opened
    from tasks.terminal import Terminal

    with opened(ROOT) as project:
        path = build_page(project, Terminal())
    typer.echo(path)
    if not no_open:
        typer.launch(path.as_uri())


def doctor(as_json: AsJson = False) -> None:
    """Check Python, packages, disk, memory, device, DVC, MLflow and Prefect; say how to fix.

    Exits with 1 if something must be fixed before a run. Example: `firstkd doctor`
    """
    from flows.doctor import examine

    checks = list(examine(ROOT.resolve()))
    if as_json:
        _print_json(checks)
    else:
        for check in checks:
            typer.echo(f"{check.verdict:<5}  {check.name:<9}  {check.found}")
            if check.fix:
                typer.echo(f"{'':<18}→ {check.fix}")
    if any(check.verdict == "wrong" for check in checks):
        raise typer.Exit(1)


def _print_json(value: Any) -> None:
    import json

    from pydantic_core import to_jsonable_python

    typer.echo(json.dumps(to_jsonable_python(value), indent=2, ensure_ascii=False))
