"""The student and its teacher as a pair, and what the student alone promises."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from firstkd.files import read_json
from firstkd.measure.deferral import LOSS, Deferral
from firstkd.measure.figures import draw_deferral
from firstkd.settings import Settings
from tasks.evaluated import Evaluated, teacher_name
from tasks.page import inline

KEPT = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Shares of questions that the student keeps, in the table."""


def cascade(models: Mapping[str, Evaluated], settings: Settings) -> dict[str, Any]:
    """Return what the report says about passing questions on, for people and programs alike.

    `pair` is None if no teacher of the student was evaluated, and costs are None without
    serve.cost.
    """
    student, teacher = models[settings.record.student], teacher_name(settings)
    pair = None if teacher is None else _pair(student, models[teacher], settings)
    return {"promise": _promise(student), "pair": pair}


def _promise(student: Evaluated) -> str | None:
    if student.promise is None:
        return None
    if student.promise.threshold is None:
        return f"“{student.name}”: {student.promise}."
    found = student.sets["test"]["policy"]
    return (
        f"“{student.name}”: {student.promise}. It answers {_share(found['coverage'])} of the test "
        f"questions; {_share(found['error'])} of those answers are wrong."
    )


def _pair(student: Evaluated, teacher: Evaluated, settings: Settings) -> dict[str, Any]:
    both = pair_of(student, teacher)
    samples, seed = settings.evaluate.bootstrap_samples, settings.runtime.seed
    shares = list(KEPT)
    if student.promise is not None:
        shares.append(student.sets["test"]["policy"]["coverage"]["value"])
    rows = [
        {
            "kept": kept,
            "accuracy": asdict(both.accuracy_at(kept, samples, seed)),
            "chance": both.chance(kept),
            "oracle": both.oracle(kept),
            "cost": _cost(settings, kept),
        }
        for kept in sorted(set(shares), reverse=True)
    ]
    headline = asdict(both.kept_share(samples, seed))
    words = (
        f"With “{teacher.name}” to fall back on, “{student.name}” can answer {_share(headline)} of "
        f"the test questions and stay within {100 * LOSS:.0f} point of the accuracy of "
        f"“{teacher.name}” alone"
    )
    if settings.serve.cost is not None:
        cost, alone = _cost(settings, headline["value"]), settings.serve.cost.teacher
        words += (
            f"; a thousand questions then cost {cost:g}, against {alone:g} for the teacher alone"
        )
    return {"teacher": teacher.name, "kept": headline, "words": f"{words}.", "rows": rows}


def pair_of(student: Evaluated, teacher: Evaluated) -> Deferral:
    alone = student.calibrated("test")
    right = teacher.raw("test").correct
    return Deferral(alone.confidence, alone.correct, right, student.groups("test"))


def _cost(settings: Settings, kept: float) -> float | None:
    """Cost of a thousand questions: the student reads all, the teacher what is passed on."""
    cost = settings.serve.cost
    return None if cost is None else round(cost.student + (1 - kept) * cost.teacher, 6)


def cascade_figure(models: Mapping[str, Evaluated], settings: Settings) -> str | None:
    """Return the deferral curve; None if there is no teacher to pass on to."""
    if (teacher := teacher_name(settings)) is None:
        return None
    both = pair_of(models[settings.record.student], models[teacher])
    label = "Accuracy of student and teacher together by share of the questions passed on"
    return inline(draw_deferral(both), "deferral", label)


def cascade_words(root: Path) -> list[str]:
    """Return the report's sentences on passing questions on; empty if there is no report yet."""
    path = root / "data/report/cascade.json"
    if not path.exists():
        return []
    found = read_json(path)
    sentences = (found["pair"] and found["pair"]["words"], found["promise"])
    return [words for words in sentences if words]


def _share(metric: Mapping[str, float]) -> str:
    return f"{metric['value']:.0%} ({100 * metric['low']:.0f} to {100 * metric['high']:.0f})"
