"""What `firstkd run` says at the end: the models side by side, the verdict, where to look next."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from firstkd.settings import Settings
from flows.results import Cell, cell, headings, load_differences, load_metrics, rows
from tasks.columns import CORRECTNESS, RANKING
from tasks.evaluated import teacher_name

if TYPE_CHECKING:  # `compare` uses this module too, and MLflow takes long to import
    from flows.conclude import Concluded

DIFFERENCES = ("accuracy", "NLL at T", "Brier at T", "AURC", "ECE at T")


def print_summary(root: Path, settings: Settings, concluded: "Concluded") -> None:
    console = Console()
    name = settings.record.registered_model
    measured = load_metrics(root, settings)
    _print_tables(console, "test", measured)
    _print_differences(console, "test", settings.record.student, load_differences(root))
    if teacher := teacher_name(settings):
        console.print(_recalibration(measured[teacher]), highlight=False)
    console.print(
        concluded.verdict.in_words(f"{name} v{concluded.version.version}"),
        highlight=False,
        soft_wrap=True,
    )
    in_charge = f"The champion is {name} v{concluded.champion}."
    console.print(f"{in_charge if concluded.champion else 'No champion yet.'}\n", highlight=False)
    console.print(
        "Where to look next, after `. .venv/bin/activate`:\n"
        f"  report      firstkd report, or {root / 'data' / 'report' / 'index.html'}\n"
        f"  every run   mlflow ui --backend-store-uri {settings.record.tracking_uri}\n"
        "  state       firstkd status",
        highlight=False,
        soft_wrap=True,
    )


def print_comparison(
    measured: Mapping[str, Any], test_set: str, student: str, differences: list[dict[str, Any]]
) -> None:
    """Print each model on a test set, and what the student is less each other one there."""
    console = Console()
    _print_tables(console, test_set, measured)
    _print_differences(console, test_set, student, differences)


def _print_tables(console: Console, test_set: str, measured: Mapping[str, Any]) -> None:
    questions = "the test questions" if test_set == "test" else f"the test set {test_set}"
    titles = {
        f"On {questions}, with 95 % intervals; T: the model's own temperature": CORRECTNESS,
        "Whether it is surer of what it gets right, at T": RANKING,
    }
    for title, columns in titles.items():
        found = rows(test_set, measured, columns)
        console.print(_table(title, headings(columns), found))


def _print_differences(
    console: Console, test_set: str, student: str, differences: list[dict[str, Any]]
) -> None:
    found = [
        [(each["model"], ""), *(cell(each["differences"][t], "+.3f", "+.2f") for t in DIFFERENCES)]
        for each in differences
        if each["test_set"] == test_set
    ]
    if found:
        title = f"{student} less each other model, on the same questions"
        console.print(_table(title, ["less", *DIFFERENCES], found))


def _table(title: str, titles: Sequence[str], found: Sequence[Sequence[Cell]]) -> Table:
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for number, heading in enumerate(titles):
        table.add_column(heading, justify="right" if number else "left", no_wrap=not number)
    for row in found:
        table.add_row(*(f"{value}\n[dim]{detail}[/dim]" for value, detail in row))
    return table


def _recalibration(teacher: Mapping[str, Any]) -> str:
    raw, calibrated = (teacher["sets"]["test"][reading] for reading in ("raw", "calibrated"))
    return (
        f"Recalibration at T = {teacher['temperature']:.2f} takes the teacher's ECE on the test "
        f"questions from {raw['ece']['value']:.3f} to {calibrated['ece']['value']:.3f}."
    )
