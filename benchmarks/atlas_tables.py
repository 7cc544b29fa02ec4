"""The atlas's tables, in Markdown, and its figure: what each cell differs in from the plain one."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.arms_tables import interval
from benchmarks.atlas_cells import GROUPS, PLAIN
from firstkd.measure.bootstrap import Estimate
from firstkd.measure.figures import INK, PAPER, SERIES, STYLE, save_png

VALUES = [
    ("accuracy", "raw", "accuracy"), ("NLL", "raw", "nll"), ("ECE", "raw", "ece"),
    ("NLL, own T", "calibrated", "nll"), ("ECE, own T", "calibrated", "ece"),
    ("AURC", "calibrated", "aurc"),
]  # fmt: skip
DRAWN = [
    ("accuracy", "raw", "accuracy"), ("NLL, own T", "calibrated", "nll"),
    ("AURC", "calibrated", "aurc"),
]  # fmt: skip
"""What is left to tell students apart once each has its own temperature."""
REACH = 0.08
"""Larger differences are drawn as arrows at this one: one huge cell must not flatten the others."""


def table(found: dict[str, Any]) -> str:
    """Return every cell's differences from the plain one, then every cell's values and costs."""
    return "\n\n".join([_differences(found), _values(found)]) + "\n"


def _differences(found: dict[str, Any]) -> str:
    """In bold: the interval excludes 0."""
    lines = _head(["cell", "what is changed", *(title for title, *_ in VALUES)])
    for group, cells in GROUPS.items():
        rows = []
        for name, cell in cells.items():
            if name in found and name != PLAIN:
                less = [_less(found[name], how, metric) for _, how, metric in VALUES]
                bold = ["**" if _is_beyond_chance(each) else "" for each in less]
                shown = [f"{b}{interval(e, '+.3f')}{b}" for e, b in zip(less, bold, strict=True)]
                rows.append(_row([f"`{name}`", cell.what, *shown]))
        if rows:
            lines += [_row([f"*{group}*", *[""] * (len(VALUES) + 1)]), *rows]
    return "\n".join(lines)


def _values(found: dict[str, Any]) -> str:
    lines = _head(["cell", *(title for title, *_ in VALUES), "seconds", "signals, kB"])
    for name in _listed(found):
        seconds, size = found[name]["cost"]["seconds"], found[name]["cost"]["bytes"]
        shown = [interval(Estimate(**found[name][how][metric])) for _, how, metric in VALUES]
        cost = ["–" if seconds is None else f"{seconds:.0f}", f"{size / 1e3:.0f}"]
        lines.append(_row([f"`{name}`", *shown, *cost]))
    return "\n".join(lines)


def save_differences(path: Path, found: dict[str, Any]) -> None:
    """Draw every cell's differences from the plain one, with intervals; filled: beyond chance; an
    arrow: beyond the axis."""
    names = [name for name in _listed(found) if name != PLAIN]
    if not names:
        return
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 1.2 + 0.21 * len(names)), layout="constrained")
        panels = figure.subplots(1, len(DRAWN), sharey=True)
        for axes, (title, how, metric) in zip(panels, DRAWN, strict=True):
            axes.axvline(0, color=INK, linestyle=":", linewidth=1.2)
            for place, name in enumerate(names):
                less = _less(found[name], how, metric)
                is_better = (less.value > 0) == (metric == "accuracy")
                color = SERIES[0] if is_better else SERIES[1]
                filling = color if _is_beyond_chance(less) else PAPER
                axes.plot([less.low, less.high], [place, place], color=color, linewidth=1.2)
                drawn = min(max(less.value, -REACH), REACH)
                marker = "o" if drawn == less.value else "<" if drawn < 0 else ">"
                axes.plot(
                    drawn, place, marker, color=color, markerfacecolor=filling, markersize=4.5
                )
            axes.set_xlim(-1.1 * REACH, 1.1 * REACH)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.set_title(f"{title}, {'higher' if metric == 'accuracy' else 'lower'} is better",
                           fontsize=10)  # fmt: skip
        panels[0].set_yticks(range(len(names)), names, fontsize=9)
        panels[0].set_ylim(len(names) - 0.5, -0.5)
        save_png(figure, path)


def _listed(found: dict[str, Any]) -> list[str]:
    return [name for cells in GROUPS.values() for name in cells if name in found]


def _less(numbers: dict[str, Any], how: str, metric: str) -> Estimate:
    return Estimate(**numbers[f"{how}_less_plain"][metric])


def _is_beyond_chance(found: Estimate) -> bool:
    return not found.low <= 0 <= found.high


def _head(titles: list[str]) -> list[str]:
    return [_row(titles), "|" + "---|" * len(titles)]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
