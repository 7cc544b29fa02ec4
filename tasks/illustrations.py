"""The report's figures and the numbers beside them, from models, curves and knowledge."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from firstkd.files import read_json
from firstkd.measure.figures import (
    draw_concentration,
    draw_coverage,
    draw_histogram,
    draw_reliability,
    draw_training,
)
from firstkd.settings import Settings
from tasks.evaluated import Evaluated
from tasks.layout import signal_folder
from tasks.page import figure_id, inline

Models = Mapping[str, Evaluated]
Curves = Mapping[str, list[dict[str, float]]]
ANSWERED = {
    "25 %": "accuracy_at_25",
    "50 %": "accuracy_at_50",
    "75 %": "accuracy_at_75",
    "100 %": "accuracy",
}
"""Metrics that give the accuracy at each share of the questions shown on the page."""


def reliability_figures(models: Models) -> list[dict[str, Any]]:
    found = []
    for name, model in models.items():
        raw, calibrated = model.raw("test"), model.calibrated("test")
        measured = model.sets["test"]
        errors = [measured[reading]["ece"]["value"] for reading in ("raw", "calibrated")]
        label = (
            f"Reliability of {name} on the test questions: ECE {errors[0]:.3f} as it is, "
            f"{errors[1]:.3f} {model.served}"
        )
        svg = inline(draw_reliability(raw, calibrated), figure_id("reliability", name), label)
        found.append({"model": model, "raw": errors[0], "calibrated": errors[1], "svg": svg})
    return found


def coverage_figure(models: Models) -> str:
    drawn = draw_coverage({name: model.calibrated("test") for name, model in models.items()})
    return inline(drawn, "coverage", "Accuracy by share of questions answered, one line per model")


def accuracy_at(models: Models) -> dict[str, list[dict[str, float]]]:
    return {
        name: [model.sets["test"]["calibrated"][metric] for metric in ANSWERED.values()]
        for name, model in models.items()
    }


def histograms(models: Models) -> list[dict[str, Any]]:
    found = []
    for name, model in models.items():
        row: dict[str, Any] = {"model": model}
        for reading in ("raw", "calibrated"):
            predictions = getattr(model, reading)("test")
            label = f"Histogram of the {reading} confidence of {name}, right and wrong answers"
            svg = draw_histogram(predictions)
            row[reading] = inline(svg, figure_id("histogram", name, reading), label)
        found.append(row)
    return found


def knowledge(root: Path, settings: Settings) -> dict[str, Any] | None:
    """How concentrated the teacher's probability is, and what keeping only its top-k saves.

    Describes the first signal of tokens; None if there is none.
    """
    described = (
        read_json(signal_folder(root, name) / "metrics.json") for name in settings.lineage.stored
    )
    metrics = next((found for found in described if "cumulative_mass" in found["train"]), None)
    if metrics is None:
        return None
    mass = {split: list(found["cumulative_mass"].values()) for split, found in metrics.items()}
    tokens = metrics["train"]["records"]
    label = "Share of the teacher's probability by number of tokens kept, one line per split"
    return {
        "svg": inline(draw_concentration(mass), "concentration", label),
        "splits": list(mass),
        "by_tokens": list(zip(*mass.values(), strict=True)),
        "tokens": tokens,
        "vocabulary": metrics["train"]["vocabulary_size"],
        "bytes_per_token": metrics["train"]["bytes"] / tokens,
        "dense_bytes_per_token": metrics["train"]["dense_bytes"] / tokens,  # as float16
    }


def training_figures(curves: Curves) -> list[dict[str, Any]]:
    return [
        {
            "model": name,
            "steps": len(points),
            "last": points[-1]["loss"],
            "svg": inline(
                draw_training(points),
                figure_id("training", name),
                f"Training loss of {name} by step, from {points[0]['loss']:.2f} "
                f"to {points[-1]['loss']:.2f}",
            ),
        }
        for name, points in curves.items()
    ]
