"""What the numbers say, in words: the student against the other models, with intervals.

A difference counts only where its 95 % interval leaves 0 out; words never claim more.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from firstkd.measure.comparison import Difference, paired_differences
from firstkd.settings import Settings
from tasks.evaluated import Evaluated
from tasks.page import signed


@dataclass(frozen=True)
class Comparison:
    """The student less another model on one test set."""

    model: str
    test_set: str
    accuracy: Difference
    ece: Difference
    """Of the models as they are."""
    calibrated_ece: Difference
    """Each with a temperature of its own."""


@dataclass(frozen=True)
class Verdict:
    headline: list[str]
    details: list[str]
    comparisons: list[Comparison]


def judge(models: Mapping[str, Evaluated], settings: Settings) -> Verdict:
    """Compare the student that is registered with every other model, in words with some."""
    student = models[settings.record.student]
    others = [model for model in models.values() if model is not student]
    comparisons = [
        compare(student, other, test_set, settings) for test_set in student.sets for other in others
    ]
    on_test = {found.model: found for found in comparisons if found.test_set == "test"}
    references = _references(others, settings)
    headline = [_sentence(student, on_test[name], who) for name, who in references.items()]
    details = [_own_numbers(student)]
    details += [_difference(on_test[name], who) for name, who in references.items()]
    details += [_out_of_domain(student, name) for name in student.sets if name != "test"]
    return Verdict(headline or [_no_reference(student, others)], details, comparisons)


def compare(student: Evaluated, other: Evaluated, test_set: str, settings: Settings) -> Comparison:
    samples, seed = settings.evaluate.bootstrap_samples, settings.runtime.seed
    raw = paired_differences(student.raw(test_set), other.raw(test_set), samples, seed)
    calibrated = paired_differences(
        student.calibrated(test_set), other.calibrated(test_set), samples, seed
    )
    return Comparison(other.name, test_set, raw["accuracy"], raw["ece"], calibrated["ece"])


def _references(others: list[Evaluated], settings: Settings) -> dict[str, str]:
    """Return whom the headline compares with, by what they are and not by their names."""
    found = {}
    for model in others:
        named = settings.models[model.name]
        if model.is_student and named.learn is not None and not named.signals:
            found[model.name] = f"the student fine-tuned on gold labels (“{model.name}”)"
    for model in others:
        if model.name in settings.teachers:
            several = len(settings.teachers) > 1
            found[model.name] = f"the teacher “{model.name}”" if several else "the teacher"
    return found


def _sentence(student: Evaluated, found: Comparison, who: str) -> str:
    accuracy = ("about as accurate", "more accurate", "less accurate")[found.accuracy.sign]
    raw, calibrated = (
        ("about as well calibrated", "worse calibrated", "better calibrated")[difference.sign]
        for difference in (found.ece, found.calibrated_ece)
    )
    # less error is better: the same signs pull in different directions
    joined = "but" if found.accuracy.sign * found.ece.sign > 0 else "and"
    words = f"Against {who}, “{student.name}” is {accuracy} {joined} {raw}"
    if found.calibrated_ece.sign == found.ece.sign:
        return f"{words}, with and without a temperature of their own."
    return f"{words} as they are. Once each has a temperature of its own, it is {calibrated}."


def _no_reference(student: Evaluated, others: list[Evaluated]) -> str:
    if not others:
        return f"“{student.name}” stands alone: there is no other model to compare it with."
    return (
        f"There is neither a teacher nor a student fine-tuned on gold labels to compare "
        f"“{student.name}” with; how it differs from the other models is told below."
    )


def _own_numbers(student: Evaluated) -> str:
    found = student.sets["test"]
    raw, calibrated = found["raw"], found["calibrated"]
    return (
        f"It answers {_share(raw['accuracy'])} of {found['examples']} test questions right. Its "
        f"confidence is off by {_share(raw['ece'])} on average as it is, and by "
        f"{_share(calibrated['ece'])} at its own temperature of {student.temperature:.2f}, "
        "which goes with it wherever it is served."
    )


def _difference(found: Comparison, who: str) -> str:
    return (
        f"Against {who}: accuracy {_points(found.accuracy)}, calibration error (ECE) "
        f"{_points(found.ece)} as they are and {_points(found.calibrated_ece)} at temperatures of "
        "their own."
    )


def _out_of_domain(student: Evaluated, test_set: str) -> str:
    found, rows = student.sets[test_set], student.of_set(test_set)
    accuracy = found["raw"]["accuracy"]
    chance = float(np.mean([1 / np.isfinite(row).sum() for row in rows["scores"].to_pylist()]))
    if accuracy["low"] > chance:
        words = f"more than guessing would ({chance:.1%})"
    elif accuracy["high"] < chance:
        words = f"less than guessing would ({chance:.1%})"
    else:
        words = f"which cannot be told from guessing ({chance:.1%})"
    return (
        f"Out of domain, on {test_set}, it answers {_share(accuracy)} of {found['examples']} "
        f"questions right, {words}; its confidence is off by {_share(found['calibrated']['ece'])}."
    )


def _share(metric: Mapping[str, float]) -> str:
    low, high = 100 * metric["low"], 100 * metric["high"]
    return f"{metric['value']:.1%} ({low:.1f} to {high:.1f})"


def _points(difference: Difference) -> str:
    numbers = (difference.value, difference.low, difference.high)
    value, low, high = (signed(100 * number, 1) for number in numbers)
    return f"{value} points ({low} to {high})"
