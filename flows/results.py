"""The results of the present state, from evaluate's files: for the terminal and for Prefect."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstkd.files import read_json
from firstkd.settings import Settings


@dataclass(frozen=True)
class Measured:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    def cell(self) -> tuple[str, str]:
        return f"{self.value:.3f}", f"{self.low:.2f}–{self.high:.2f}"


@dataclass(frozen=True)
class ModelResult:
    """A model on a test set; `ece` is its own confidence's, before any temperature."""

    name: str
    accuracy: Measured
    ece: Measured
    calibrated_ece: Measured
    trust: Measured
    temperature: float
    parameters: int
    bytes: int

    def cells(self) -> list[tuple[str, str]]:
        """Return what stands under each of HEADINGS: the thing itself, and a detail."""
        return [
            (self.name, ""),
            self.accuracy.cell(),
            self.ece.cell(),
            self.calibrated_ece.cell(),
            self.trust.cell(),
            (f"{self.parameters / 1e6:.1f} M", f"{self.bytes / 1e6:.0f} MB"),
        ]


HEADINGS = ["model", "accuracy", "ECE", "ECE at T", "trust", "size"]


def load_metrics(root: Path, settings: Settings) -> dict[str, Any]:
    """Return what evaluate measured of each model of the settings."""
    folder = root / "data" / "evaluate"
    return {name: read_json(folder / name / "metrics.json") for name in settings.evaluate.models}


def load_results(root: Path, settings: Settings) -> list[ModelResult]:
    """Return the models' results on the test questions."""
    return results_on("test", load_metrics(root, settings))


def results_on(test_set: str, measured: Mapping[str, Any]) -> list[ModelResult]:
    """Return the results of those models that were measured on a test set."""
    return [
        _result(name, metrics, test_set)
        for name, metrics in measured.items()
        if test_set in metrics["sets"]
    ]


def _result(name: str, metrics: dict[str, Any], test_set: str) -> ModelResult:
    found = metrics["sets"][test_set]
    return ModelResult(
        name=name,
        accuracy=Measured(**found["raw"]["accuracy"]),
        ece=Measured(**found["raw"]["ece"]),
        calibrated_ece=Measured(**found["calibrated"]["ece"]),
        trust=Measured(**found["raw"]["trust"]),
        temperature=metrics["temperature"],
        parameters=metrics["parameters"],
        bytes=metrics["bytes"],
    )


def markdown_table(results: list[ModelResult]) -> str:
    cells = [
        [f"{value} ({detail})" if detail else value for value, detail in result.cells()]
        for result in results
    ]
    rows = [HEADINGS, ["---"] * len(HEADINGS), *cells]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def markdown_image(path: Path, text: str) -> str:
    """Return the image itself as markdown: a page elsewhere cannot open this machine's files."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f"![{text}](data:image/png;base64,{data})"
