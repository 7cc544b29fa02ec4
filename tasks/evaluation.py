"""From a scorer of questions, whatever runtime it runs in, to what evaluate writes of a model."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from firstkd.errors import DataValidationError
from firstkd.files import atomic_folder
from firstkd.settings import Settings
from tasks.fitted import fitted
from tasks.layout import evaluation_folder
from tasks.scores import Scored

log = logging.getLogger(__name__)

Scorer = Callable[[Path], Scored | None]
"""Scores the questions of a file that have choices; None if none has."""


def write_evaluation(
    root: Path, name: str, settings: Settings, score: Scorer, facts: Mapping[str, Any]
) -> None:
    """Fit a temperature on the calibration split, measure on the test sets, and write both.

    `facts` go into metrics.json as they are. Raises DataValidationError without questions to fit
    or to measure on.
    """
    prepared = root / "data/prepare"
    calibration = prepared / "calibration.parquet"
    fitted_on, scored = score(calibration), score_tests(prepared, score)
    if fitted_on is None or "test" not in scored:
        lacking = calibration if fitted_on is None else test_files(prepared)[0]
        raise DataValidationError(
            f"{lacking}: no questions with choices, on which a model's temperature is fitted and "
            "its answers are measured"
        )
    found = fitted(name, fitted_on, scored, settings.prompt, settings)
    with atomic_folder(evaluation_folder(root, name)) as output:
        found.write(output, {**facts, **found.metrics})
    log.info("%s", in_a_line(name, found.metrics))


def in_a_line(model: str, metrics: dict[str, Any]) -> str:
    raw, calibrated = (metrics["sets"]["test"][kind] for kind in ("raw", "calibrated"))
    temperature = metrics["temperature"]
    numbers = [
        f"accuracy {raw['accuracy']['value']:.3f}",
        f"ECE {raw['ece']['value']:.3f}",
        f"at its own temperature of {temperature:.2f} NLL {calibrated['nll']['value']:.3f}",
        f"AURC {calibrated['aurc']['value']:.3f}",
        f"ECE {calibrated['ece']['value']:.3f}",
    ]
    return f"{model}: {', '.join(numbers)}"


def score_tests(prepared: Path, score: Scorer) -> dict[str, Scored]:
    """Score each test set that has questions with choices, by its name."""
    return {set_name(file): found for file in test_files(prepared) if (found := score(file))}


def test_files(prepared: Path) -> list[Path]:
    """The test set's questions, then those of each set out of domain."""
    return [prepared / "test.parquet", *sorted(prepared.glob("ood_*.parquet"))]


def set_name(file: Path) -> str:
    return file.stem.removeprefix("ood_")
