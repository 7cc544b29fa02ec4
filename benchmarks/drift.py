"""Does the drift alarm stay silent while nothing changes, and come soon when something does?

Uses a finished run's predictions of the student as it is served. A version's reference is drawn
from the test questions, as many as there are calibration questions. Served questions are drawn from
the same ones (a calm week), or from an out-of-domain set that replaces them. All questions are
drawn with replacement, so that a calm week is truly like its reference.

- `weeks_with_alarm`: how many of 20 calm weeks, of 10,000 questions each, raised an alarm.
- `alarms_within`: the share of 20 changes that raised an alarm within 500 questions, and after how
  many (`median`), when the other set comes at once or after 1,300 calm questions.

Run as  python -m benchmarks.drift [MODEL]   (after `firstkd run`; one JSON line)
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

from firstkd.data.examples import Example, read_examples
from firstkd.serving.drift import Drift
from firstkd.serving.reference import Reference
from firstkd.settings import Settings, load_settings
from tasks.answers import set_name, test_files
from tasks.evaluated import Evaluated, load_evaluated

WEEKS, WEEK = 20, 10_000
SOON = 500
CALM_BEFORE = (0, 1300)
BLOCK = 10
"""Questions between two checks of the alarm."""

Served = list[tuple[Example, float]]


def questions(root: Path, model: Evaluated) -> dict[str, Served]:
    """Return each set's questions, with the model's confidence in each as it is served."""
    found = {}
    for file in test_files(root / "data/prepare"):
        name = set_name(file)
        if name in model.sets:
            rows = model.of_set(name, ["id"])
            sure = dict(
                zip(rows["id"].to_pylist(), model.calibrated(name).confidence.tolist(), strict=True)
            )
            found[name] = [(e, sure[e.id]) for e in read_examples(file) if e.id in sure]
    return found


def draw(generator: np.random.Generator, of: Served, count: int) -> Served:
    return [of[place] for place in generator.integers(len(of), size=count)]


def watching(settings: Settings, reference: Served, limit: float | None, seed: int) -> Drift:
    assert settings.serve.drift is not None
    drift = Drift(settings.serve.drift, seed=seed * 1000)
    examples, sure = zip(*reference, strict=True)
    drift.watch("student", Reference.of(examples, sure), limit)
    return drift


def alarm_after(drift: Drift, served: Served) -> int | None:
    """Return after how many questions the alarm came; None if it did not."""
    for start in range(0, len(served), BLOCK):
        block = served[start : start + BLOCK]
        drift.add([example for example, _ in block], [sure for _, sure in block])
        if drift.state.alarm:
            return start + len(block)
    return None


def main(name: str | None = None, root: Path = Path(".")) -> None:
    settings = load_settings(root / "params.yaml")
    model = load_evaluated(root, settings)[name or settings.record.student]
    sets, generator = questions(root, model), np.random.default_rng(settings.runtime.seed)
    home, kept = sets.pop("test"), len(read_examples(root / "data/prepare/calibration.parquet"))
    limit = settings.serve.abstain_below or statistics.median(sure for _, sure in home)
    calm = []
    for week in range(WEEKS):
        drift = watching(settings, draw(generator, home, kept), limit, week)
        calm.append(alarm_after(drift, draw(generator, home, WEEK)))
    line: dict[str, Any] = {
        "benchmark": "drift",
        "model": model.name,
        "reference": kept,
        "weeks": WEEKS,
        "questions_a_week": WEEK,
        "false_alarms": settings.serve.drift and settings.serve.drift.false_alarms,
        "weeks_with_alarm": sum(after is not None for after in calm),
    }
    for other, served in sets.items():
        for before in CALM_BEFORE:
            found = []
            for change in range(WEEKS):
                drift = watching(settings, draw(generator, home, kept), limit, WEEKS + change)
                if alarm_after(drift, draw(generator, home, before)) is None:
                    found.append(alarm_after(drift, draw(generator, served, SOON)))
            soon = [after for after in found if after is not None]
            line[f"{other}_after_{before}"] = {
                "alarms_within": len(soon) / len(found) if found else None,
                "median": statistics.median(soon) if soon else None,
            }
    print(json.dumps(line))


if __name__ == "__main__":
    main(*sys.argv[1:])
