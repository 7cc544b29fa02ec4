"""A model that answers in its own words, with confidence calibrated on the calibration split."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from firstkd.measure.metrics import Bools, Floats, Predictions
from firstkd.open_text.calibration import Calibration
from firstkd.open_text.metrics import of_each, statistic
from firstkd.open_text.settings import OpenTextSettings
from firstkd.open_text.writer import Writer
from firstkd.serving.promise import Promise, Threshold
from firstkd.settings import Settings
from tasks.answers import Asked
from tasks.scores import Chunks, Decided, promised
from tasks.subject import Subject

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judged:
    """Answers in a model's own words to examples [E], and which of them are right."""

    asked: Chunks
    given: list[str]
    right: list[str]
    confidence: Floats
    correct: Bools

    @classmethod
    def of(cls, writer: Writer, asked: Chunks, title: str) -> Self:
        given, right, sure = list[str](), list[str](), []
        for examples in asked:
            answers, confidence = writer.answer(examples, title)
            given += [answer.text for answer in answers]
            right += [example.response for example in examples]
            sure.append(confidence)
        settings = writer.settings
        correct = of_each(settings.metric, given, right) >= settings.right_from
        return cls(asked, given, right, np.concatenate(sure), correct)

    def at(self, calibration: Calibration) -> Decided:
        size = len(self.given)
        return Decided(
            asked=self.asked,
            readings={
                "raw": Predictions.of_answers(self.confidence, self.correct),
                "calibrated": Predictions.of_answers(calibration(self.confidence), self.correct),
            },
            given=self.given,
            columns={
                "answer_index": np.full(size, -1),
                "is_right": self.correct[:, None],
                "predicted_index": np.full(size, -1),
                "scores": np.empty((size, 0)),
            },
            text=statistic(self.given, self.right),
        )


@dataclass(frozen=True)
class Writing:
    name: str
    """Name of the model."""
    writer: Writer
    calibration: Calibration
    promise: Promise | None = None

    @classmethod
    def fit(cls, subject: Subject, calibration: Path, settings: Settings) -> Self | None:
        """Fit the calibration of the confidence; None without examples of open text."""
        asked = Asked(calibration, has_choices=False)
        if not asked:
            return None
        writer = subject.writer(settings.evaluate.open_text, settings.runtime.seed)
        judged = Judged.of(writer, asked, f"{subject.name} writes: {calibration.stem}")
        kind = writer.settings.recalibrate
        fitted = Calibration.fit(kind, judged.confidence, judged.correct, settings.calibrate)
        if judged.correct.all() or not judged.correct.any():
            log.warning(
                "%s on the calibration split: %d of %d answers count as right, which says nothing "
                "about how sure it should be; choose evaluate.open_text.metric and right_from "
                "so that some are right and some are not, or add calibration examples",
                *(subject.name, judged.correct.sum(), len(judged.correct)),
            )
        return cls(subject.name, writer, fitted, promised(judged.at(fitted), settings.serve.policy))

    @classmethod
    def of_kept(cls, subject: Subject, kept: Mapping[str, Any]) -> Self:
        """Rebuild it from what `kept()` returned, as written to a calibration.json."""
        settings = OpenTextSettings.model_validate(kept["settings"])
        writer = subject.writer(settings, kept["seed"])
        return cls(
            subject.name,
            writer,
            Calibration.from_json(kept["calibration"]),
            Threshold.of(kept, None).promise,
        )

    def kept(self) -> dict[str, Any]:
        """Return what a student needs to answer in the same way."""
        return {
            "settings": self.writer.settings.model_dump(),
            "seed": self.writer.seed,
            "calibration": self.calibration.to_json(),
            "policy": None if self.promise is None else asdict(self.promise),
        }

    def decide(self, file: Path) -> Decided | None:
        asked = Asked(file, has_choices=False)
        if not asked:
            return None
        return Judged.of(self.writer, asked, f"{self.name} writes: {file.stem}").at(
            self.calibration
        )
