"""The report's numbers for programs: tables, and DVC's metrics and plots."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from firstkd.files import atomic_file
from firstkd.measure.metrics import Predictions, reliability_bins
from firstkd.measure.ranking import coverage_curve
from tasks.findings import Comparison
from tasks.illustrations import Curves, Models

Point = Mapping[str, float]


def table(models: Models) -> list[dict[str, Any]]:
    """Return one row per model, test set and reading of its confidence."""
    return [
        {
            "model": name,
            "set": test_set,
            "confidence": reading,
            "temperature": model.temperature if reading == "calibrated" else 1.0,
            "parameters": model.metrics["parameters"],
            "bytes": model.metrics["bytes"],
            "examples": found["examples"],
            **found[reading],
        }
        for name, model in models.items()
        for test_set, found in model.sets.items()
        for reading in ("raw", "calibrated")
    ]


HEADLINE = {
    "accuracy": ("raw", "accuracy"),
    "ece": ("raw", "ece"),
    "ece_at_t": ("calibrated", "ece"),
    "nll_at_t": ("calibrated", "nll"),
    "brier_at_t": ("calibrated", "brier"),
    "auroc": ("calibrated", "auroc"),
    "aurc": ("calibrated", "aurc"),
    "accuracy_at_25": ("calibrated", "accuracy_at_25"),
}


def headline_metrics(models: Models) -> dict[str, Any]:
    """Return the few numbers that `dvc metrics diff` and `dvc exp show` compare."""
    return {
        name: {
            title: model.sets["test"][reading][metric]["value"]
            for title, (reading, metric) in HEADLINE.items()
        }
        for name, model in models.items()
    }


def differences(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Return the student minus each other model, on each test set, by column title."""
    return [asdict(comparison) for comparison in comparisons]


def write_plots(folder: Path, models: Models, curves: Curves) -> None:
    """Write each plot's points, one file per model; `dvc plots diff` draws one line per revision.

    A plot is a folder of files, since the models' names are not known where it is declared.
    """
    for name, model in models.items():
        for reading in ("raw", "calibrated"):
            predictions = getattr(model, reading)("test")
            write_csv(folder / f"reliability/{name}-{reading}.csv", reliability_points(predictions))
        write_csv(folder / f"coverage/{name}.csv", coverage_points(model.calibrated("test")))
    for name, points in curves.items():
        losses = [{"step": int(point["step"]), "loss": point["loss"]} for point in points]
        write_csv(folder / f"training/{name}.csv", losses)


def reliability_points(predictions: Predictions) -> list[Point]:
    bins = reliability_bins(predictions.confidence, predictions.correct)
    return [
        {"confidence": float(confidence), "accuracy": float(accuracy), "questions": int(count)}
        for count, confidence, accuracy in zip(
            bins.count, bins.confidence, bins.accuracy, strict=True
        )
        if count
    ]


def coverage_points(predictions: Predictions) -> list[Point]:
    share, accuracy = coverage_curve(predictions.confidence, predictions.correct)
    return [
        {"coverage": float(x), "accuracy": float(y)} for x, y in zip(share, accuracy, strict=True)
    ]


def write_csv(path: Path, points: Sequence[Point]) -> None:
    with atomic_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(points[0]), lineterminator="\n")
        writer.writeheader()
        for point in points:
            writer.writerow({name: f"{value:.6g}" for name, value in point.items()})
