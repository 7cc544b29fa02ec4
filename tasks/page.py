"""The report as one HTML file that needs nothing else: tables, figures, style and script inside."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from tasks.columns import COLUMNS, TEXT, Column
from tasks.evaluated import Evaluated


def table_rows(
    models: Mapping[str, Evaluated], test_set: str, columns: Sequence[Column]
) -> list[dict[str, Any]]:
    """One row per model with its cells; the best student of each column is marked."""
    rows: list[dict[str, Any]] = []
    for model in models.values():
        found = model.sets[test_set]
        cells = [dict(column.of(found)) for column in columns]
        rows.append({"model": model, "cells": cells})
    ranked = [row for row in rows if row["model"].is_student] or rows
    for number, column in enumerate(columns):
        values = [row["cells"][number]["value"] for row in ranked]
        best = max(values) if column.more_is_better else min(values)
        for row in rows:
            cell = row["cells"][number]
            cell["best"] = len(ranked) > 1 and row in ranked and cell["value"] == best
    return rows


def inline(svg: str, name: str, label: str) -> Markup:
    """Return a figure for the page: with unique ids and a label for those who cannot see it.

    Several figures in one page must not share ids.
    """
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    labelled = Markup('<svg role="img" aria-label="{}"').format(label)
    return labelled + Markup(svg.removeprefix("<svg"))


def figure_id(*words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower())


def templates_of(package: str) -> Environment:
    """Return the package's templates: escaped, and an error where a value is missing."""
    return Environment(
        loader=PackageLoader(package, "templates"),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(**content: Any) -> str:
    environment = templates_of("tasks")
    environment.filters |= {"size": size, "signed": signed}
    return environment.get_template("report.html").render(columns=COLUMNS, text=TEXT, **content)


def signed(number: float, digits: int) -> str:
    rounded = round(number, digits) + 0.0  # which makes 0 of −0
    return f"{rounded:+.{digits}f}".replace("-", "−")


def size(number: float | None, unit: str) -> str:
    """Return a number of things with four digits at most: 134.5 M, 269.1 MB; – if it is unknown."""
    if number is None:
        return "–"
    for power, prefix in ((9, "G"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:.4g} {prefix}{unit}"
    return f"{number:g} {unit}".strip()
