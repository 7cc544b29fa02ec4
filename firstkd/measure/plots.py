"""The pictures people look at, in colours that colour-blind readers can tell apart."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from firstkd.files import atomic_file
from firstkd.measure.metrics import Predictions, expected_calibration_error, reliability_bins

matplotlib.rcParams["svg.hashsalt"] = "firstkd"
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#767676"  # Okabe and Ito
COLUMNS = 4


def save_reliability(path: Path, diagrams: Mapping[str, Predictions]) -> None:
    """Write one reliability diagram per entry: accuracy by confidence, with the bins' counts."""
    columns = min(COLUMNS, len(diagrams))
    rows = -(-len(diagrams) // columns)
    figure = Figure(figsize=(3.4 * columns, 4.0 * rows), layout="constrained")
    axes = figure.subplots(rows * 2, columns, squeeze=False, height_ratios=[3, 1] * rows)
    for number, (title, predictions) in enumerate(diagrams.items()):
        row, column = divmod(number, columns)
        _draw(axes[row * 2, column], axes[row * 2 + 1, column], title, predictions)
    for number in range(len(diagrams), rows * columns):
        row, column = divmod(number, columns)
        axes[row * 2, column].remove()
        axes[row * 2 + 1, column].remove()
    with atomic_file(path) as temporary:
        # without its metadata the picture is the same bytes with every version's clock
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


def save_concentration(path: Path, curves: Mapping[str, Sequence[float]]) -> None:
    """Write the mean share of the teacher's probability that the top-1 … top-k tokens hold."""
    figure = Figure(figsize=(5.0, 3.6), layout="constrained")
    axes = figure.subplots()
    for (name, masses), colour in zip(curves.items(), cycle((BLUE, ORANGE, GREY)), strict=False):
        axes.plot(range(1, len(masses) + 1), masses, "o-", color=colour, label=name, markersize=4)
    axes.set(ylim=(0, 1), xlabel="tokens kept", ylabel="share of the probability")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


def _draw(diagram: Axes, counts: Axes, title: str, predictions: Predictions) -> None:
    confidence, correct = predictions.confidence, predictions.correct
    bins = reliability_bins(confidence, correct)
    filled = bins.count > 0
    edges = [i / len(bins.count) for i in range(len(bins.count))]
    width = 1 / len(bins.count)
    diagram.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    diagram.bar(edges, bins.accuracy, width, align="edge", color=BLUE, alpha=0.35, edgecolor=BLUE)
    diagram.plot(bins.confidence[filled], bins.accuracy[filled], "o-", color=ORANGE, markersize=4)
    diagram.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    ece = float(expected_calibration_error(confidence, correct))
    diagram.set_title(f"{title}\nECE {ece:.3f}, accuracy {correct.mean():.3f}", fontsize=10)
    counts.bar(edges, bins.count, width, align="edge", color=GREY)
    counts.set(xlim=(0, 1), xlabel="confidence", ylabel="count")
