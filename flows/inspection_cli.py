"""The commands that look and change nothing: status, compare, report, doctor.

Everything heavy is imported inside the commands, as in flows/cli.py.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from firstkd.settings import Settings
    from flows.workspace import Workspace

ROOT = Path(".")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def add_to(app: typer.Typer) -> None:
    for command in (status, compare, report, doctor):
        app.command()(command)


def status(as_json: AsJson = False) -> None:
    """Show which stages are stale and why, who is champion since when, and the last run.

    Examples: `firstkd status`, `firstkd status --json`
    """
    from flows.state import read_state

    here, settings = _here()
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


def compare(
    version: Annotated[
        list[str] | None,
        typer.Option(
            help="A registered version to set beside them, by number or alias; may be repeated."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the models of `evaluate.models` side by side, on every test set.

    Examples: `firstkd compare`, `firstkd compare --version 1 --version champion`,
    `firstkd compare --json`
    """
    from flows.results import load_differences, load_metrics
    from flows.summary import print_comparison

    here, settings = _here()
    measured, elsewhere = load_metrics(here.root, settings), []
    if version:
        from firstkd.files import sha256_of
        from flows.tracking import open_tracking
        from flows.versions import measured_versions

        digest = sha256_of(here.root / "data/prepare/test.parquet")
        tracking = open_tracking(here.root, settings.record)
        for found in measured_versions(tracking, settings, version):
            measured[found.name] = found.metrics
            if found.test_digest != digest:
                elsewhere.append(found.name)
    if as_json:
        _print_json(measured)
    else:
        differences = load_differences(here.root)
        for test_set in dict.fromkeys(name for each in measured.values() for name in each["sets"]):
            print_comparison(measured, test_set, settings.record.student, differences)
    for name in elsewhere:
        said = f"{name} was measured on other test questions than the present ones"
        typer.echo(f"{said}: it cannot be compared with the rest", err=True)


def report(
    no_open: Annotated[
        bool, typer.Option("--no-open", help="Do not open it in a browser.")
    ] = False,
) -> None:
    """Bring the report page up to date, add cost and lineage, and open it.

    Example: `firstkd report --no-open`
    """
    from flows.page import build_page
    from flows.terminal import Terminal

    here, settings = _here()
    path = build_page(here, settings, Terminal())
    typer.echo(path)
    if not no_open:
        typer.launch(path.as_uri())


def doctor(as_json: AsJson = False) -> None:
    """Check Python, packages, disk, memory, device, DVC, MLflow and Prefect; say how to mend.

    Exits with 1 when something must be mended before a run. Example: `firstkd doctor`
    """
    from flows.doctor import examine

    checks = examine(ROOT.resolve())
    if as_json:
        _print_json(checks)
    else:
        for check in checks:
            typer.echo(f"{check.verdict:<5}  {check.name:<9}  {check.found}")
            if check.mend:
                typer.echo(f"{'':<18}→ {check.mend}")
    if any(check.verdict == "wrong" for check in checks):
        raise typer.Exit(1)


def _here() -> "tuple[Workspace, Settings]":
    from firstkd.settings import load_settings
    from flows.workspace import Workspace

    return Workspace(ROOT.resolve()), load_settings(ROOT / "params.yaml")


def _print_json(value: Any) -> None:
    import json

    from pydantic_core import to_jsonable_python

    typer.echo(json.dumps(to_jsonable_python(value), indent=2, ensure_ascii=False))
