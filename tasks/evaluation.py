"""Evaluate a model, in whatever runtime, and write the results."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from firstkd.files import atomic_folder
from firstkd.settings import Settings
from tasks.choosing import Chooser, Choosing
from tasks.fitted import fitted
from tasks.layout import evaluation_folder
from tasks.writing import Writing

log = logging.getLogger(__name__)


def write_evaluation(
    root: Path,
    subject: Chooser,
    writing: Writing | None,
    settings: Settings,
    facts: Mapping[str, Any],
) -> None:
    """Fit a temperature on the calibration split, measure on the test sets, and write both.

    `facts` go into metrics.json unchanged. Raises DataValidationError as `fitted` does.
    """
    prepared = root / "data/prepare"
    choosing = Choosing.fit(subject, prepared / "calibration.parquet", settings)
    found = fitted(subject, choosing, writing, prepared, settings)
    with atomic_folder(evaluation_folder(root, subject.name)) as output:
        found.write(output, {**facts, **found.metrics})
    log.info("%s", in_a_line(subject.name, found.metrics))


def in_a_line(model: str, metrics: dict[str, Any]) -> str:
    found, temperature = metrics["sets"]["test"], metrics["temperature"]
    raw, calibrated = found["raw"], found["calibrated"]
    how = "calibrated" if "text" in found else f"at its own temperature of {temperature:.2f}"
    numbers = [
        f"accuracy {raw['accuracy']['value']:.3f}",
        f"ECE {raw['ece']['value']:.3f}",
        f"{how} NLL {calibrated['nll']['value']:.3f}",
        f"AURC {calibrated['aurc']['value']:.3f}",
        f"ECE {calibrated['ece']['value']:.3f}",
    ]
    return f"{model}: {', '.join(numbers)}"
