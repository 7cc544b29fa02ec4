"""Is the promise of serve.policy kept on 200 random splits of a finished run's predictions?

Each split fits the model's calibration (its temperature; evaluate.open_text's calibration for open
text) and the threshold on one half of the questions, as evaluate does on the calibration split.
Reports two shares of the splits:

- `broken`: the true error above the threshold exceeds the limit. That error is known because
  the calibration questions are drawn with replacement, so that all questions are the population.
  The promise is that this share is at most 1 − confidence.
- `above_on_the_rest`: the error on the other half exceeds the limit. That half is itself a sample,
  so a true error just below the limit looks too high in up to half of such halves.

Run as  python -m benchmarks.risk [MODEL …]   (after `firstkd run`; one JSON line a model and set)
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from firstkd.measure.metrics import Predictions
from firstkd.measure.risk import best_coverage, promise
from firstkd.open_text.calibration import Calibration
from firstkd.recalibration.temperature import Temperature
from firstkd.serving.settings import PolicySettings
from firstkd.settings import Settings, load_settings
from firstkd.signals.knowledge import Knowledge
from tasks.evaluated import load_evaluated

SPLITS = 200
LIMITS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
CONFIDENCE = 0.95


def own_temperature(settings: Settings, scores: np.ndarray, is_right: np.ndarray) -> float:
    log_scores = torch.from_numpy(scores).log_softmax(-1)
    right = torch.from_numpy(is_right)
    decisions = Knowledge.of_choices(log_scores, right.int().argmax(-1))
    return Temperature.fit(decisions, right, settings.calibrate).temperature


Refit = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Confidence in all answers, and which are right, when calibrated on those at these indices."""


def of_choices(settings: Settings, scores: np.ndarray, is_right: np.ndarray) -> Refit:
    def refit(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        temperature = own_temperature(settings, scores[part], is_right[part])
        decisions = Predictions.of_choices(scores / temperature, is_right)
        return decisions.confidence, decisions.correct

    return refit


def of_own_words(settings: Settings, raw: np.ndarray, correct: np.ndarray) -> Refit:
    kind = settings.evaluate.open_text.recalibrate

    def refit(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        fitted = Calibration.fit(kind, raw[part], correct[part], settings.calibrate)
        return fitted(raw), correct

    return refit


def count(settings: Settings, questions: int, refit: Refit) -> list[dict[str, Any]]:
    generator = np.random.default_rng(settings.runtime.seed)
    size = questions // 2
    found = {limit: [] for limit in LIMITS}
    for _ in range(SPLITS):
        drawn = generator.integers(questions, size=size)
        mixed = generator.permutation(questions)
        for part, rest, name in (
            (drawn, np.arange(questions), "broken"),
            (mixed[:size], mixed[size:], "above_on_the_rest"),
        ):
            confidence, correct = refit(part)
            for limit in LIMITS:
                policy = PolicySettings(max_error=limit, confidence=CONFIDENCE)
                kept = promise(confidence[part], correct[part], policy)
                answered = confidence[rest] >= kept.abstain_below
                wrong = float((~correct[rest][answered]).mean()) if answered.any() else 0.0
                best = best_coverage(confidence[rest], correct[rest], limit)
                found[limit].append((name, wrong > limit, answered.mean(), best))
    return [_row(limit, outcomes) for limit, outcomes in found.items()]


def _row(limit: float, outcomes: list[tuple[str, bool, float, float]]) -> dict[str, Any]:
    row: dict[str, Any] = {"max_error": limit}
    for name in ("broken", "above_on_the_rest"):
        row[name] = float(np.mean([above for kind, above, _, _ in outcomes if kind == name]))
    for place, name in ((2, "coverage"), (3, "best_coverage")):
        row[name] = round(float(np.mean([o[place] for o in outcomes if o[0] == "broken"])), 3)
    return row


def main(names: list[str], root: Path = Path(".")) -> None:
    settings = load_settings(root / "params.yaml")
    torch.set_num_threads(1)
    for name, model in load_evaluated(root, settings).items():
        for test_set in model.sets if not names or name in names else []:
            size = len(model.groups(test_set))
            if "text" in model.sets[test_set]:
                raw = model.raw(test_set)
                refit = of_own_words(settings, raw.confidence, raw.correct)
            else:
                scores, is_right = (model.column(test_set, c) for c in ("scores", "is_right"))
                refit = of_choices(settings, scores, is_right)
            line = {
                "benchmark": "risk",
                "model": name,
                "set": test_set,
                "questions": size,
                "splits": SPLITS,
                "confidence": CONFIDENCE,
                "limits": count(settings, size, refit),
            }
            print(json.dumps(line))


if __name__ == "__main__":
    main(sys.argv[1:])
