"""The results of the present state, from evaluate's files: for the terminal and for Prefect."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from firstkd.files import read_json
from firstkd.settings import Settings
from tasks.columns import CORRECTNESS, RANKING, Column

Cell = tuple[str, str]
"""The thing itself, and a detail: a number and its interval."""


def load_metrics(root: Path, settings: Settings) -> dict[str, Any]:
    """Return what evaluate measured of each model of the settings."""
    folder = root / "data" / "evaluate"
    return {name: read_json(folder / name / "metrics.json") for name in settings.evaluate.models}


def load_differences(root: Path) -> list[dict[str, Any]]:
    """Return the student less each other model on each test set; none before there is a report."""
    path = root / "data" / "report" / "differences.json"
    return [*read_json(path)] if path.exists() else []


def headings(columns: Sequence[Column]) -> list[str]:
    sized = ["size"] if columns is CORRECTNESS else []
    return ["model", *(column.title for column in columns), *sized]


def rows(test_set: str, measured: Mapping[str, Any], columns: Sequence[Column]) -> list[list[Cell]]:
    """Return a row under `headings` for each model that was measured on a test set."""
    found = []
    for name, metrics in measured.items():
        if test_set in metrics["sets"]:
            values = [column.of(metrics["sets"][test_set]) for column in columns]
            row = [(name, ""), *(cell(value, ".3f", ".2f") for value in values)]
            if columns is CORRECTNESS:
                size = f"{metrics['parameters'] / 1e6:.1f} M", f"{metrics['bytes'] / 1e6:.0f} MB"
                row.append(size)
            found.append(row)
    return found


def cell(found: Mapping[str, float], style: str, detail: str) -> Cell:
    low, high = format(found["low"], detail), format(found["high"], detail)
    return format(found["value"], style), f"{low}–{high}" if detail == ".2f" else f"{low}, {high}"


def markdown_table(measured: Mapping[str, Any]) -> str:
    """Return the results on the test questions as markdown."""
    tables = []
    for columns in (CORRECTNESS, RANKING):
        cells = [
            [f"{value} ({detail})" if detail else value for value, detail in row]
            for row in rows("test", measured, columns)
        ]
        titles = headings(columns)
        lines = [titles, ["---"] * len(titles), *cells]
        tables.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(tables)


def markdown_image(path: Path, text: str) -> str:
    """Return the image itself as markdown: a page elsewhere cannot open this machine's files."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f"![{text}](data:image/png;base64,{data})"
