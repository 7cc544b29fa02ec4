"""The report's numbers for programs: tables, and the points of DVC's metrics and plots."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from firstkd.comparison import coverage_curve
from firstkd.files import atomic_file
from firstkd.metrics import reliability_bins
from tasks.illustrations import Curves, Models


def table(models: Models) -> list[dict[str, Any]]:
    """One row per model, test set and reading of its confidence."""
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


def headline_metrics(models: Models) -> dict[str, Any]:
    """The few numbers that `dvc metrics diff` and `dvc exp show` put side by side."""
    return {
        name: {
            "accuracy": model.sets["test"]["raw"]["accuracy"]["value"],
            "ece": model.sets["test"]["raw"]["ece"]["value"],
            "ece_at_t": model.sets["test"]["calibrated"]["ece"]["value"],
            "nll_at_t": model.sets["test"]["calibrated"]["nll"]["value"],
        }
        for name, model in models.items()
    }


def reliability_points(models: Models) -> Iterable[dict[str, Any]]:
    for name, model in models.items():
        for reading in ("raw", "calibrated"):
            predictions = getattr(model, reading)("test")
            bins = reliability_bins(predictions.confidence, predictions.correct)
            for count, confidence, accuracy in zip(
                bins.count, bins.confidence, bins.accuracy, strict=True
            ):
                if count:
                    yield {
                        "model": f"{name}, {reading}",
                        "confidence": round(float(confidence), 6),
                        "accuracy": round(float(accuracy), 6),
                        "questions": int(count),
                    }


def coverage_points(models: Models) -> Iterable[dict[str, Any]]:
    for name, model in models.items():
        predictions = model.calibrated("test")
        for share, accuracy in zip(
            *coverage_curve(predictions.confidence, predictions.correct), strict=True
        ):
            yield {
                "model": name,
                "coverage": round(float(share), 6),
                "accuracy": round(float(accuracy), 6),
            }


def training_points(curves: Curves) -> Iterable[dict[str, Any]]:
    for name, points in curves.items():
        for point in points:
            yield {"model": name, "step": int(point["step"]), "loss": round(point["loss"], 6)}


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    rows = list(rows)
    with atomic_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
