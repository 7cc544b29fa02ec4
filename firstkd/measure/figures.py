"""All figures: as SVG for the report's page, and as PNG files for everything else.

Text in an SVG stays text, so it is sharp and searchable. Each figure is drawn at the width of a
phone and scales up. Colours are Okabe and Ito's, which colour-blind readers can tell apart, some
darkened to a contrast of 3 : 1 on white; `to_svg` replaces them with the page's CSS variables,
which differ in the dark theme. Lines also differ in dashes, as there may be more lines than
colours.
"""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from firstkd.files import atomic_file
from firstkd.measure.deferral import Deferral
from firstkd.measure.metrics import Predictions, expected_calibration_error, reliability_bins
from firstkd.measure.ranking import coverage_curve

INK = "#1b1b1f"
PAPER = "#fefefe"
SERIES = ("#0072b2", "#d55e00", "#00805e", "#b0578d", "#7a6a00", "#3a8fc4")
DASHES = ("-", "--", ":", "-.")
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "firstkd",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
    ),
}
BINS = 10
FEW = 10
"""Number of questions; the accuracy on fewer is noise."""
COLUMNS = 4
"""Columns of panels in a PNG."""


def draw_reliability(raw: Predictions, calibrated: Predictions) -> str:
    """Draw accuracy by confidence, before and after its own temperature, above the counts."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4, 4.8), layout="constrained")
        panel = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        _reliability(panel[0], panel[1], {"as it is": raw, "at its own T": calibrated})
        figure.legend(loc="outside upper center", ncols=3, columnspacing=1)
        return to_svg(figure)


def save_reliability(path: Path, diagrams: Mapping[str, Predictions]) -> None:
    """Write a panel for each entry: accuracy by confidence, above the counts."""
    columns = min(COLUMNS, len(diagrams))
    rows = -(-len(diagrams) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.4 * columns, 4.0 * rows), layout="constrained")
        axes = figure.subplots(rows * 2, columns, squeeze=False, height_ratios=[3, 1] * rows)
        for number, (title, predictions) in enumerate(diagrams.items()):
            row, column = divmod(number, columns)
            diagram, counts = axes[row * 2 : row * 2 + 2, column]
            _reliability(diagram, counts, {title: predictions})
            correct = predictions.correct
            ece = float(expected_calibration_error(predictions.confidence, correct)[0])
            numbers = f"ECE {ece:.3f}, accuracy {correct.mean():.3f}"
            diagram.set_title(f"{title}\n{numbers}", fontsize=10)
        for number in range(len(diagrams), rows * columns):
            row, column = divmod(number, columns)
            axes[row * 2, column].remove()
            axes[row * 2 + 1, column].remove()
        save_png(figure, path)


def _reliability(diagram: Axes, counts: Axes, readings: Mapping[str, Predictions]) -> None:
    """Draw one or two readings of a model's confidence, above their counts."""
    diagram.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=1.2, label="ideal")
    width = 0.84 / len(readings)
    for number, (label, predictions) in enumerate(readings.items()):
        bins = reliability_bins(predictions.confidence, predictions.correct, BINS)
        filled, color, marker = bins.count > 0, SERIES[1 - number], "os"[number]
        style: Any = {"color": color, "marker": marker, "markersize": 4.5}
        diagram.plot(bins.confidence[filled], bins.accuracy[filled], **style, label=label)
        few = filled & (bins.count < FEW)
        hollow: Any = {"linestyle": "", "markerfacecolor": PAPER}
        diagram.plot(bins.confidence[few], bins.accuracy[few], **style, **hollow)
        left = [(bin + 0.08 + width * number) / BINS for bin in range(BINS)]
        counts.bar(left, bins.count, width / BINS, align="edge", color=color)
    # with room for markers at 0 and 1
    diagram.set(xlim=(0, 1), ylim=(-0.03, 1.03), ylabel="accuracy")
    counts.set(xlim=(0, 1), xlabel="confidence", ylabel="questions")
    counts.yaxis.set_major_locator(MaxNLocator(2, integer=True))


def draw_histogram(predictions: Predictions) -> str:
    """Draw how sure the model is when it is right and when it is wrong."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4, 2.9), layout="constrained")
        axes = figure.subplots()
        right = predictions.correct
        axes.hist(
            [predictions.confidence[right], predictions.confidence[~right]],
            bins=[edge / (2 * BINS) for edge in range(2 * BINS + 1)],
            stacked=True,
            color=[SERIES[0], SERIES[1]],
            label=["right", "wrong"],
        )
        axes.set(xlim=(0, 1), xlabel="confidence", ylabel="questions")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        figure.legend(loc="outside upper center", ncols=2)
        return to_svg(figure)


def draw_coverage(models: Mapping[str, Predictions]) -> str:
    """Draw each model's accuracy if it answers only the questions it is surest of."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _with_legend(models)
        for number, (name, predictions) in enumerate(models.items()):
            share, accuracy = coverage_curve(predictions.confidence, predictions.correct)
            enough = share * len(predictions) >= FEW
            axes.plot(share[enough], accuracy[enough], label=name)
            axes.lines[-1].set(**_line(number))
        axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy on answered questions")
        axes.set_xlabel("share of questions answered, surest first")
        _add_legend(figure, models)
        return to_svg(figure)


def draw_deferral(pair: Deferral) -> str:
    """Draw student and teacher's joint accuracy by share passed on, with chance and oracle."""
    shares = np.linspace(0, 1, 101)
    kept, accuracy = (found[0] for found in pair.curve())
    lines = {
        "least sure first": (1 - kept, accuracy),
        "at random": (shares, [pair.chance(1 - share) for share in shares]),
        "if one knew": (shares, [pair.oracle(1 - share) for share in shares]),
    }
    with matplotlib.rc_context(STYLE):
        figure, axes = _with_legend(lines)
        for number, (name, points) in enumerate(lines.items()):
            axes.plot(*points, label=name)
            axes.lines[-1].set(**_line(number))
        axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy of the pair")
        axes.set_xlabel("share of questions passed on to the teacher")
        _add_legend(figure, lines)
        return to_svg(figure)


def draw_concentration(splits: Mapping[str, Sequence[float]]) -> str:
    """Draw the share of the teacher's probability that is on its top-1 … top-k tokens."""
    with matplotlib.rc_context(STYLE):
        return to_svg(_concentration(splits))


def save_concentration(path: Path, splits: Mapping[str, Sequence[float]]) -> None:
    """Write the figure of `draw_concentration`."""
    with matplotlib.rc_context(STYLE):
        save_png(_concentration(splits), path)


def _concentration(splits: Mapping[str, Sequence[float]]) -> Figure:
    figure, axes = _with_legend(splits)
    for number, (name, mass) in enumerate(splits.items()):
        axes.plot(range(1, len(mass) + 1), mass, label=name, marker="os^D"[number % 4])
        axes.lines[-1].set(**_line(number))
    axes.set(ylim=(0, 1), xlabel="tokens kept", ylabel="probability they cover")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _add_legend(figure, splits)
    return figure


def draw_training(points: Sequence[Mapping[str, float]]) -> str:
    """Draw the loss by step."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4, 2.6), layout="constrained")
        axes = figure.subplots()
        steps, losses = ([point[key] for point in points] for key in ("step", "loss"))
        axes.plot(steps, losses, color=SERIES[0], linewidth=1.5)
        axes.set(xlabel="step", ylabel="loss")
        axes.set_ylim(0, 1.05 * max(losses))  # a loss that hardly falls is not cut off
        return to_svg(figure)


def _line(number: int) -> dict[str, object]:
    rounds, color = divmod(number, len(SERIES))
    return {
        "color": SERIES[color],
        "linestyle": DASHES[(color + rounds) % len(DASHES)],
        "linewidth": 1.8,
    }


def _legend_columns(names: Mapping[str, object]) -> int:
    return max(1, min(3, 64 // (max(map(len, names)) + 9)))


def _with_legend(names: Mapping[str, object]) -> tuple[Figure, Axes]:
    """Return a figure with room for a legend of these names below it."""
    rows = -(-len(names) // _legend_columns(names))
    figure = Figure(figsize=(4.8, 3.4 + 0.24 * rows), layout="constrained")
    return figure, figure.subplots()


def _add_legend(figure: Figure, names: Mapping[str, object]) -> None:
    figure.legend(loc="outside lower center", ncols=_legend_columns(names), handlelength=2.6)


def save_png(figure: Figure, path: Path) -> None:
    """Write the same bytes for the same figure."""
    with atomic_file(path) as temporary:
        # without metadata, the file's bytes do not depend on matplotlib's version
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


def to_svg(figure: Figure) -> str:
    """Return only the `<svg>` element: no fixed size, no date, themed colours."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace(INK, "var(--ink)").replace(PAPER, "var(--paper)")
    for number, color in enumerate(SERIES):
        svg = svg.replace(color, f"var(--series-{number})")
    return svg
