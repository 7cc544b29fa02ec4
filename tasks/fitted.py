"""What is fitted to a model on labelled questions, and what it is then measured to be.

Of the stage `evaluate`, and of a registered student that is recalibrated.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from firstkd.data.examples import common_choices
from firstkd.data.settings import PromptSettings
from firstkd.files import write_json
from firstkd.recalibration.temperature import warn_at_bound
from firstkd.serving.reference import Reference
from firstkd.settings import Settings
from tasks.scores import Scored, measured, own_temperature, promised, under

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fitted:
    metrics: dict[str, Any]
    """The temperature, and the metrics of each test set at it."""
    calibration: dict[str, Any]
    """What goes with the model wherever it is served."""
    predictions: pa.Table
    """One row for each test question."""

    def write(self, folder: Path, metrics: dict[str, Any]) -> None:
        """Write the files of an evaluation; `metrics` may hold more than were measured here."""
        write_json(folder / "metrics.json", metrics)
        write_json(folder / "calibration.json", self.calibration)
        pq.write_table(self.predictions, folder / "predictions.parquet")


def fitted(
    name: str,
    fitted_on: Scored,
    tests: Mapping[str, Scored],
    prompt: PromptSettings,
    settings: Settings,
) -> Fitted:
    """Fit a temperature and what `serve.policy` promises at it, and measure the test sets."""
    fit = own_temperature(fitted_on, settings.calibrate)
    temperature, at_bound = fit.temperature, fit.at_bound(settings.calibrate) is not None
    decisions = fitted_on.predictions(temperature)
    if at_bound:
        warn_at_bound(f"{name} on the calibration split", temperature, decisions.correct)
    sets, predictions = measured(tests, temperature, settings.evaluate, settings.runtime.seed)
    promise = promised(fitted_on, temperature, settings.serve.policy)
    if promise is not None:
        log.info("%s: %s", name, promise)
        for test_set, split in tests.items():
            sets[test_set]["policy"] = under(promise, split, temperature)
    calibration = {
        "temperature": temperature,
        "prompt": prompt.model_dump(),
        "choices": common_choices(fitted_on.examples),
        "policy": None if promise is None else asdict(promise),
        "reference": asdict(Reference.of(fitted_on.examples, decisions.confidence.tolist())),
    }
    found = {"temperature": temperature, "temperature_at_bound": at_bound, "sets": sets}
    return Fitted(found, calibration, predictions)
