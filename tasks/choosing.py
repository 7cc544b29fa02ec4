"""A model that chooses its answers, at a temperature fitted on the calibration split."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol, Self

from firstkd.data.examples import Example, common_choices
from firstkd.data.settings import PromptSettings
from firstkd.recalibration.temperature import warn_at_bound
from firstkd.serving.promise import Promise
from firstkd.serving.reference import LARGEST, Reference
from firstkd.settings import Settings
from tasks.answers import Asked
from tasks.scores import Chunks, Decided, Scored, own_temperature, promised


class Chooser(Protocol):
    """A model, in whatever runtime, that scores the choices of questions."""

    @property
    def name(self) -> str: ...

    @property
    def prompt(self) -> PromptSettings: ...

    def score(self, examples: Sequence[Example], title: str) -> Scored: ...


@dataclass(frozen=True)
class Choosing:
    subject: Chooser
    temperature: float
    common_choices: list[str] | None = None
    """The choices that all calibration questions share, if they do."""
    at_bound: bool = False
    promise: Promise | None = None
    reference: Reference | None = None
    """What the calibration questions were like."""

    @classmethod
    def fit(cls, subject: Chooser, calibration: Path, settings: Settings) -> Self | None:
        """Fit the temperature; None if no question has choices."""
        asked = Asked(calibration, has_choices=True)
        if not asked:
            return None
        scored = score_all(subject, asked, f"{subject.name} on {calibration.stem}")
        return cls.of(subject, asked, scored, settings)

    @classmethod
    def of(cls, subject: Chooser, asked: Chunks, scored: Scored, settings: Settings) -> Self:
        """Fit the temperature to questions that have been scored."""
        fitted = own_temperature(scored, settings.calibrate)
        at_bound = fitted.at_bound(settings.calibrate) is not None
        if at_bound:
            right = scored.predictions().correct
            what = f"{subject.name} on the calibration split"
            warn_at_bound(what, fitted.temperature, right)
        decided = scored.at(fitted.temperature, asked)
        confidence = decided.readings["calibrated"].confidence[:LARGEST].tolist()
        return cls(
            subject,
            fitted.temperature,
            common_choices(chain.from_iterable(asked)),
            at_bound,
            promised(decided, settings.serve.policy),
            Reference.of(chain.from_iterable(asked), confidence),
        )

    def decide(self, file: Path) -> Decided | None:
        asked = Asked(file, has_choices=True)
        if not asked:
            return None
        scored = score_all(self.subject, asked, f"{self.subject.name} on {file.stem}")
        return scored.at(self.temperature, asked)


def score_all(subject: Chooser, asked: Chunks, title: str) -> Scored:
    """Score the choices of questions, a chunk at a time."""
    return Scored.concatenate([subject.score(examples, title) for examples in asked])
