"""The results of the present state, from evaluate's files: for the terminal and for Prefect."""

import base64
from dataclasses import dataclass
from pathlib import Path

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
    """A model on the test questions; `ece` is its own confidence's, before any temperature."""

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


def load_results(root: Path, settings: Settings) -> list[ModelResult]:
    return [_load(root, name) for name in settings.evaluate.models]


def _load(root: Path, name: str) -> ModelResult:
    metrics = read_json(root / "data" / "evaluate" / name / "metrics.json")
    test = metrics["sets"]["test"]
    return ModelResult(
        name=name,
        accuracy=Measured(**test["raw"]["accuracy"]),
        ece=Measured(**test["raw"]["ece"]),
        calibrated_ece=Measured(**test["calibrated"]["ece"]),
        trust=Measured(**test["raw"]["trust"]),
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
