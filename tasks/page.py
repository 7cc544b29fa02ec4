"""The report as one self-contained HTML file, with tables, figures, style and script inside."""

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
    """Return one row of cells per model; the best student in each column is marked."""
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
    """Return a figure for the page, with unique ids and a label for those who cannot see it.

    Figures on one page must not share ids.
    """
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    labelled = Markup('<svg role="img" aria-label="{}"').format(label)
    return labelled + Markup(svg.removeprefix("<svg"))


def figure_id(*words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower())


def templates_of(package: str) -> Environment:
    """Return the package's templates: values are escaped, and a missing one is an error."""
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
    rounded = round(number, digits) + 0.0  # turns −0 into 0
    return f"{rounded:+.{digits}f}".replace("-", "−")


def size(number: float | None, unit: str) -> str:
    """Return a quantity with at most four digits: 134.5 M, 269.1 MB; – if it is unknown."""
    if number is None:
        return "–"
    for power, prefix in ((9, "G"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:.4g} {prefix}{unit}"
    return f"{number:g} {unit}".strip()
