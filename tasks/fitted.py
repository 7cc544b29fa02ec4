"""What is fitted to a model on labelled questions, and the metrics measured with it.

For the stage `evaluate`, and for recalibrating a registered student.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from firstkd.errors import DataValidationError
from firstkd.files import write_json
from firstkd.settings import Settings
from tasks.answers import decide_all, test_files
from tasks.choosing import Chooser, Choosing
from tasks.rows import write_predictions
from tasks.scores import Decided, measured, under
from tasks.writing import Writing

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fitted:
    metrics: dict[str, Any]
    """The temperature, and the metrics of each test set at that temperature."""
    calibration: dict[str, Any]
    """What goes with the model wherever it is served."""
    decided: Mapping[str, Decided]
    """The answers to each test set."""

    def write(self, folder: Path, metrics: dict[str, Any]) -> None:
        """Write the files of an evaluation; `metrics` may contain more than was measured here."""
        write_json(folder / "metrics.json", metrics)
        write_json(folder / "calibration.json", self.calibration)
        write_predictions(folder / "predictions.parquet", self.decided)


def fitted(
    subject: Chooser,
    choosing: Choosing | None,
    writing: Writing | None,
    prepared: Path,
    settings: Settings,
) -> Fitted:
    """Measure the test sets in each way the model answers, and return what it needs elsewhere.

    Raises DataValidationError unless the test set has questions of a kind that it answers.
    """
    ways = [way for way in (choosing, writing) if way is not None]
    decided = decide_all(ways, prepared)
    if "test" not in decided:
        raise DataValidationError(
            f"{test_files(prepared)[0]}: no questions like those of "
            f"{prepared / 'calibration.parquet'} (with choices, or open text) that "
            f"{subject.name} can answer; its confidence is calibrated there and measured here"
        )
    answers = {name: answered for name, (_, answered) in decided.items()}
    sets = measured(answers, settings.evaluate, settings.runtime.seed)
    for name, (way, answered) in decided.items():
        if way.promise is not None:
            samples, seed = settings.evaluate.bootstrap_samples, settings.runtime.seed
            sets[name]["policy"] = under(way.promise, answered, samples, seed)
    for way in ways:
        if way.promise is not None:
            log.info("%s: %s", subject.name, way.promise)
    policy, reference = choosing and choosing.promise, choosing and choosing.reference
    calibration = {
        "temperature": choosing and choosing.temperature,
        "prompt": subject.prompt.model_dump(),
        "choices": choosing and choosing.common_choices,
        "policy": policy and asdict(policy),
        "reference": reference and asdict(reference),
        "open_text": writing and writing.kept(),
    }
    found = {
        "temperature": choosing and choosing.temperature,
        "temperature_at_bound": choosing is not None and choosing.at_bound,
        "sets": sets,
    }
    return Fitted(found, calibration, answers)
