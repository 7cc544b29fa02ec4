"""What the numbers say, in words: the student against the other models, with intervals.

A difference counts only if its 95 % interval excludes 0; the words never claim more.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from firstkd.measure.bootstrap import Draws, Estimate, resample
from firstkd.measure.comparison import less, paired_differences
from firstkd.settings import Settings
from tasks.columns import COLUMNS, TEXT
from tasks.evaluated import Evaluated
from tasks.page import signed


@dataclass(frozen=True)
class Comparison:
    """The student minus another model on one test set."""

    model: str
    test_set: str
    differences: dict[str, Estimate]
    """By the titles of COLUMNS, and of TEXT if both answered in their own words."""


@dataclass(frozen=True)
class Findings:
    headline: list[str]
    details: list[str]
    comparisons: list[Comparison]

    @property
    def has_text(self) -> bool:
        """Whether any comparison is of answers in the models' own words."""
        return any(TEXT[0].title in found.differences for found in self.comparisons)


def compare_student(models: Mapping[str, Evaluated], settings: Settings) -> Findings:
    """Compare the registered student with every other model, and with some in words."""
    student = models[settings.record.student]
    others = [model for model in models.values() if model is not student]
    comparisons = [
        compare(student, other, test_set, settings) for test_set in student.sets for other in others
    ]
    on_test = {found.model: found for found in comparisons if found.test_set == "test"}
    references = _references(others, settings)
    headline = [_sentence(student, on_test[name], who) for name, who in references.items()]
    details = [_own_numbers(student), _own_ranking(student)]
    details += [_difference(on_test[name], who) for name, who in references.items()]
    details += [_elsewhere(student, name) for name in student.sets if name != "test"]
    return Findings(headline or [_no_reference(student, others)], details, comparisons)


def compare(student: Evaluated, other: Evaluated, test_set: str, settings: Settings) -> Comparison:
    samples, seed = settings.evaluate.bootstrap_samples, settings.runtime.seed
    groups = student.groups(test_set)
    found: dict[str, Estimate] = {}
    for reading in ("raw", "calibrated"):
        ours, theirs = getattr(student, reading)(test_set), getattr(other, reading)(test_set)
        columns = [column for column in COLUMNS if column.reading == reading]
        names = [column.metric for column in columns]
        differences = paired_differences(ours, theirs, samples, seed, names, groups)
        found |= {column.title: differences[column.metric] for column in columns}
    ordered = {column.title: found[column.title] for column in COLUMNS}
    words = student.text(test_set), other.text(test_set)
    if words[0] is not None and words[1] is not None:
        draws = Draws.of(len(groups), samples, seed, groups)
        changes = resample(less(words[0], words[1]), draws)
        ordered |= {column.title: changes[column.metric].estimate() for column in TEXT}
    return Comparison(other.name, test_set, ordered)


def _references(others: list[Evaluated], settings: Settings) -> dict[str, str]:
    """Return the models that the headline compares with, each with its role in words."""
    found = {}
    for model in others:
        named = settings.models.get(model.name)  # None: an export
        if model.is_student and named and named.learn is not None and not named.signals:
            found[model.name] = f"the student fine-tuned on gold labels (“{model.name}”)"
    for model in others:
        if model.name in settings.teachers:
            several = len(settings.teachers) > 1
            found[model.name] = f"the teacher “{model.name}”" if several else "the teacher"
    return found


def _sentence(student: Evaluated, found: Comparison, who: str) -> str:
    def words(title: str, alike: str, more: str, less: str) -> str:
        return (alike, more, less)[found.differences[title].sign]

    accuracy = words("accuracy", "about as accurate", "more accurate", "less accurate")
    likelihood = words("NLL at T", "about as good", "worse", "better")
    ranking = words("AURC", "about as well", "less well", "better")
    calibration = words("ECE at T", "about as well", "worse", "better")
    return (
        f"Against {who}, “{student.name}” is {accuracy}. With each at its own temperature, "
        f"its probabilities are {likelihood} (NLL), it knows {ranking} which of its answers are "
        f"right (AURC), and it is {calibration} calibrated (ECE)."
    )


def _no_reference(student: Evaluated, others: list[Evaluated]) -> str:
    if not others:
        return f"“{student.name}” stands alone: there is no other model to compare it with."
    return (
        f"There is neither a teacher nor a student fine-tuned on gold labels to compare "
        f"“{student.name}” with; its differences from the other models are below."
    )


def _own_numbers(student: Evaluated) -> str:
    found = student.sets["test"]
    raw, calibrated = found["raw"], found["calibrated"]
    return (
        f"It answers {_share(raw['accuracy'])} of {found['examples']} test questions right. Its "
        f"confidence is off by {_share(raw['ece'])} on average before calibration, and by "
        f"{_share(calibrated['ece'])} {student.served}; "
        "this calibration goes with it wherever it is served."
    )


def _own_ranking(student: Evaluated) -> str:
    found = student.sets["test"]["calibrated"]
    return (
        f"It is right on {_share(found['accuracy_at_25'])} of the quarter of the questions it is "
        f"surest of, and on {_share(found['accuracy_at_50'])} of the surest half. A right answer "
        f"is surer than a wrong one with probability {_share(found['auroc'])}; 50% is pure chance."
    )


def _difference(found: Comparison, who: str) -> str:
    return (
        f"Against {who}: accuracy {_points(found.differences['accuracy'])}; NLL "
        f"{_change(found.differences['NLL at T'])}, AURC {_change(found.differences['AURC'])} and "
        f"calibration error (ECE) {_points(found.differences['ECE at T'])}, each at its own "
        "temperature."
    )


def _elsewhere(student: Evaluated, test_set: str) -> str:
    found = student.sets[test_set]
    accuracy = found["raw"]["accuracy"]
    where = f"Out of domain, on {test_set},"
    if test_set.startswith("test "):
        where = "On the test's open text"
    words = ""
    if "text" not in found:
        words = f", {_beside_chance(accuracy, student.column(test_set, 'scores'))}"
    return (
        f"{where} it answers {_share(accuracy)} of {found['examples']} "
        f"questions right{words}; its confidence is off by {_share(found['calibrated']['ece'])}."
    )


def _beside_chance(accuracy: Mapping[str, float], scores_EC: NDArray[np.float64]) -> str:
    chance = float(np.mean(1 / np.isfinite(scores_EC).sum(-1)))
    if accuracy["low"] > chance:
        return f"more than guessing would ({chance:.1%})"
    if accuracy["high"] < chance:
        return f"less than guessing would ({chance:.1%})"
    return f"which is indistinguishable from guessing ({chance:.1%})"


def _share(metric: Mapping[str, float]) -> str:
    low, high = 100 * metric["low"], 100 * metric["high"]
    return f"{metric['value']:.1%} ({low:.1f} to {high:.1f})"


def _points(difference: Estimate) -> str:
    numbers = (difference.value, difference.low, difference.high)
    value, low, high = (signed(100 * number, 1) for number in numbers)
    return f"{value} points ({low} to {high})"


def _change(difference: Estimate) -> str:
    numbers = (difference.value, difference.low, difference.high)
    value, low, high = (signed(number, 3) for number in numbers)
    return f"{value} ({low} to {high})"
