"""Tables of the models side by side, from evaluate's metrics, for the terminal and as markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from firstkd.files import read_json
from firstkd.settings import Settings
from tasks.columns import CORRECTNESS, RANKING, TEXT, Column

DIFFERENCES = ("accuracy", "NLL at T", "Brier at T", "AURC", "ECE at T")
Cell = tuple[str, str]
"""A value and its detail: a number and its interval."""


def load_metrics(root: Path, settings: Settings) -> dict[str, Any]:
    """Return evaluate's metrics of each model in the settings."""
    folder = root / "data" / "evaluate"
    return {name: read_json(folder / name / "metrics.json") for name in settings.evaluate.models}


def load_differences(root: Path) -> list[dict[str, Any]]:
    """Return the student minus each other model on each test set; empty before the first report."""
    path = root / "data" / "report" / "differences.json"
    return [*read_json(path)] if path.exists() else []


def headings(columns: Sequence[Column]) -> list[str]:
    sized = ["size"] if columns is CORRECTNESS else []
    return ["model", *(column.title for column in columns), *sized]


def rows(test_set: str, measured: Mapping[str, Any], columns: Sequence[Column]) -> list[list[Cell]]:
    """Return a row under `headings` for each model that was measured on a test set."""
    found = []
    for name, metrics in measured.items():
        if columns[0].reading in metrics["sets"].get(test_set, {}):
            values = [column.of(metrics["sets"][test_set]) for column in columns]
            row = [(name, ""), *(cell(value, ".3f", ".2f") for value in values)]
            if columns is CORRECTNESS:
                row.append(size(metrics))
            found.append(row)
    return found


def size(metrics: Mapping[str, Any]) -> Cell:
    if metrics["parameters"] is None:
        return "behind a server", ""
    return f"{metrics['parameters'] / 1e6:.1f} M", f"{metrics['bytes'] / 1e6:.0f} MB"


def cell(found: Mapping[str, float], style: str, detail: str) -> Cell:
    low, high = format(found["low"], detail), format(found["high"], detail)
    return format(found["value"], style), f"{low}–{high}" if detail == ".2f" else f"{low}, {high}"


def markdown_table(measured: Mapping[str, Any]) -> str:
    """Return the results on the test questions as markdown."""
    tables = []
    for columns in (CORRECTNESS, RANKING, TEXT):
        cells = [
            [f"{value} ({detail})" if detail else value for value, detail in row]
            for row in rows("test", measured, columns)
        ]
        if not cells:  # e.g. for own words, if there are only choices
            continue
        titles = headings(columns)
        lines = [titles, ["---"] * len(titles), *cells]
        tables.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(tables)


def print_comparison(
    measured: Mapping[str, Any], test_set: str, student: str, differences: list[dict[str, Any]]
) -> None:
    """Print each model's results on a test set, and the student minus each other model there."""
    console = Console()
    _print_tables(console, test_set, measured)
    _print_differences(console, test_set, student, differences)


def _print_tables(console: Console, test_set: str, measured: Mapping[str, Any]) -> None:
    questions = "the test questions" if test_set == "test" else f"the test set {test_set}"
    titles = {
        f"On {questions}, with 95 % intervals; T is the model's own temperature": CORRECTNESS,
        "Whether it is surer of what it gets right, at T": RANKING,
        "Its own words against the right ones; above, T stands for their calibration": TEXT,
    }
    for title, columns in titles.items():
        if found := rows(test_set, measured, columns):
            console.print(_table(title, headings(columns), found))


def _print_differences(
    console: Console, test_set: str, student: str, differences: list[dict[str, Any]]
) -> None:
    here = [each for each in differences if each["test_set"] == test_set]
    for titles in (DIFFERENCES, tuple(column.title for column in TEXT)):
        found = [
            [(each["model"], ""), *(cell(each["differences"][t], "+.3f", "+.2f") for t in titles)]
            for each in here
            if titles[0] in each["differences"]
        ]
        if found:
            title = f"{student} minus each other model, on the same questions"
            console.print(_table(title, ["minus", *titles], found))


def _table(title: str, titles: Sequence[str], found: Sequence[Sequence[Cell]]) -> Table:
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for number, heading in enumerate(titles):
        table.add_column(heading, justify="right" if number else "left", no_wrap=not number)
    for row in found:
        table.add_row(*(f"{value}\n[dim]{detail}[/dim]" for value, detail in row))
    return table


def recalibration_words(teacher: Mapping[str, Any]) -> str:
    """Say what recalibration does to a teacher on the test questions."""
    test = teacher["sets"]["test"]
    raw, calibrated = (test[reading]["ece"]["value"] for reading in ("raw", "calibrated"))
    how = "" if "text" in test else f" at T = {teacher['temperature']:.2f}"
    return (
        f"Recalibration{how} takes the teacher's ECE on the test questions from {raw:.3f} to "
        f"{calibrated:.3f}."
    )
