"""A model that chooses its answers, at a temperature fitted on the calibration split."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from firstkd.data.examples import Example, common_choices
from firstkd.data.settings import PromptSettings
from firstkd.recalibration.temperature import warn_at_bound
from firstkd.serving.promise import Promise
from firstkd.serving.reference import Reference
from firstkd.settings import Settings
from tasks.answers import with_choices
from tasks.scores import Decided, Scored, own_temperature, promised


class Chooser(Protocol):
    """A model in whatever runtime scores the choices of questions."""

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
    """What all calibration questions could be answered by, if they shared it."""
    at_bound: bool = False
    promise: Promise | None = None
    reference: Reference | None = None
    """What the calibration questions were like."""

    @classmethod
    def fit(cls, subject: Chooser, calibration: Path, settings: Settings) -> Self | None:
        """Fit the temperature; None without questions that have choices."""
        examples = with_choices(calibration)
        if not examples:
            return None
        return cls.of(
            subject, subject.score(examples, f"{subject.name} on {calibration.stem}"), settings
        )

    @classmethod
    def of(cls, subject: Chooser, scored: Scored, settings: Settings) -> Self:
        """Fit the temperature to questions that have been scored."""
        fitted = own_temperature(scored, settings.calibrate)
        at_bound = fitted.at_bound(settings.calibrate) is not None
        if at_bound:
            right = scored.predictions().correct
            what = f"{subject.name} on the calibration split"
            warn_at_bound(what, fitted.temperature, right)
        decided = scored.at(fitted.temperature)
        return cls(
            subject,
            fitted.temperature,
            common_choices(scored.examples),
            at_bound,
            promised(decided, settings.serve.policy),
            Reference.of(scored.examples, decided.readings["calibrated"].confidence.tolist()),
        )

    def decide(self, file: Path) -> Decided | None:
        examples = with_choices(file)
        if not examples:
            return None
        title = f"{self.subject.name} on {file.stem}"
        return self.subject.score(examples, title).at(self.temperature)
