"""Fit the recalibrations that make the teacher's confidence honest.

Reads   data/signal/NAME/calibration/, data/prepare/calibration.parquet
Writes  data/calibrate/NAME/RECALIBRATION.json, metrics.json, reliability.png
Run as  python -m tasks.calibrate NAME   (normally through `dvc repro calibrate-NAME`)
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from firstkd.data.examples import example_key, read_examples, unit_hash
from firstkd.data.prompts import encode
from firstkd.errors import ConfigError, DataValidationError
from firstkd.files import atomic_folder, write_json
from firstkd.measure.bootstrap import Estimate
from firstkd.measure.figures import save_reliability
from firstkd.measure.metrics import Predictions
from firstkd.models.folders import load_tokenizer
from firstkd.recalibration.base import Recalibration, top_is_right
from firstkd.recalibration.settings import CalibrateSettings
from firstkd.recalibration.table import RECALIBRATIONS, to_json
from firstkd.recalibration.temperature import Temperature, temperature_interval, warn_at_bound
from firstkd.reproducibility import deterministic
from firstkd.settings import Settings, load_settings
from firstkd.signals.knowledge import Knowledge
from firstkd.signals.store import SignalStore
from tasks.layout import model_folder, prepared, signal_folder
from tasks.scores import drawn_with
from tasks.stage import run_stage

FOLDS = 5
log = logging.getLogger(__name__)


def main(root: Path, name: str) -> None:
    settings = load_settings(root / "params.yaml")
    if name not in settings.signals:
        raise ConfigError(f"there is no signals.{name}; allowed: {', '.join(settings.signals)}")
    deterministic(settings.runtime.seed, settings.runtime.threads)
    decisions = load_decisions(root, settings, name)
    fitted: dict[str, dict[str, Any]] = {}
    metrics: dict[str, Any] = {}
    diagrams: dict[str, Predictions] = {}
    for kind, recalibration in RECALIBRATIONS.items():
        if not recalibration.supports(decisions.knowledge):
            continue
        best = recalibration.fit(decisions.knowledge, decisions.is_right, settings.calibrate)
        fitted[kind] = to_json(best)
        diagrams[kind] = cross_fitted(recalibration, decisions, settings.calibrate)
        metrics[kind] = {
            "in_sample": decisions.predictions(best).values(),
            "cross_fitted": diagrams[kind].values(),
            "at_bound": is_at_bound(f"signals.{name}, {kind}", best, decisions, settings),
        }
    interval = interval_of_temperature(decisions, settings)
    metrics["temperature"]["temperature"] = asdict(interval)
    numbers = f"{interval.value:.2f} ({interval.low:.2f}–{interval.high:.2f})"
    log.info("signals.%s, T = %s; cross-fitted:", name, numbers)
    for line in table(metrics):
        log.info("  %s", line)
    with atomic_folder(root / "data/calibrate" / name) as folder:
        for kind, best_found in fitted.items():
            write_json(folder / f"{kind}.json", best_found)
        write_json(folder / "metrics.json", metrics)
        save_reliability(folder / "reliability.png", diagrams)


def table(metrics: dict[str, Any]) -> list[str]:
    """Lines that compare the recalibrations on decisions they were not fitted to."""
    shown = ("accuracy", "ece", "nll", "brier", "aurc")
    lines = [f"{'':23}" + "".join(f"{name:>10}" for name in shown)]
    for name, found in metrics.items():
        numbers = found["cross_fitted"]
        lines.append(f"{name:23}" + "".join(f"{numbers[metric]:10.3f}" for metric in shown))
    return lines


@dataclass(frozen=True)
class Decisions:
    """R decisions of the teacher on the calibration split."""

    knowledge: Knowledge
    is_right: Tensor
    """[R, K], True at the right candidates."""
    groups: list[str]
    """[R] the group of each: its conversation or passage, or else its example."""

    def __getitem__(self, rows: Tensor) -> Self:
        groups = [self.groups[row] for row in rows.tolist()]
        return type(self)(self.knowledge[rows], self.is_right[rows], groups)

    def predictions(self, recalibration: Recalibration) -> Predictions:
        gold = recalibration.gold_probability(self.knowledge, self.is_right)
        probabilities = recalibration.apply(self.knowledge)
        return Predictions.of(probabilities.numpy(), self.is_right.numpy(), gold.numpy())


def load_decisions(root: Path, settings: Settings, name: str) -> Decisions:
    """Return a signal's decisions; raises ArtifactError if it belongs to other examples."""
    signal = settings.signals[name]
    tokenizer = load_tokenizer(model_folder(root, settings.lineage.read_with(name)))
    examples = read_examples(prepared(root, "calibration"))
    questions = encode(examples, tokenizer, settings.prompt)
    store = SignalStore(signal_folder(root, name, "calibration"))
    if signal.has_token_ids:
        store.require("gold_logprob")
    ids = [example.id for example in examples]
    positions = store.positions([example_key(example) for example in examples], ids)
    store.check_counts(positions, [signal.records_of(q) for q in questions], ids)
    knowledge = signal.decisions(store.of_examples(positions), store.facts)
    counts = [signal.decisions_of(question) for question in questions]
    each = [drawn_with(one) for one, n in zip(examples, counts, strict=True) for _ in range(n)]
    return Decisions(knowledge, signal.is_right(knowledge, examples, questions), each)


def cross_fitted(
    recalibration: type[Recalibration], decisions: Decisions, settings: CalibrateSettings
) -> Predictions:
    """Return predictions on each fold from a recalibration fitted to the others.

    In-sample numbers favour the most flexible fit: a step function of 175 decisions also fits
    their noise.
    """
    fold_R = folds(decisions.groups)
    if fold_R.max() == 0:
        raise DataValidationError(
            f"data/prepare/calibration.parquet: only {decisions.groups[0]} has decisions of this "
            "kind; fitting a recalibration takes at least two questions, conversations or "
            "passages, and dozens to be useful"
        )
    parts = []
    for fold in np.unique(fold_R):
        inside = torch.from_numpy(fold_R == fold)
        others, these = decisions[(~inside).nonzero()[:, 0]], decisions[inside.nonzero()[:, 0]]
        best = recalibration.fit(others.knowledge, others.is_right, settings)
        parts.append(these.predictions(best))
    return Predictions.concatenate(parts)


def folds(groups: Sequence[str]) -> NDArray[np.int64]:
    """Return the fold of each decision: whole groups, dealt out in the order of their hashes."""
    dealt = sorted(set(groups), key=lambda identity: (unit_hash(identity), identity))
    fold_of = {identity: number % FOLDS for number, identity in enumerate(dealt)}
    return np.array([fold_of[identity] for identity in groups])


def is_at_bound(what: str, best: Recalibration, decisions: Decisions, settings: Settings) -> bool:
    """Return whether a parameter is at the bound of its search, and warn if so."""
    bound = best.at_bound(settings.calibrate)
    if bound is not None:
        correct = top_is_right(decisions.knowledge.top_logprobs, decisions.is_right)
        warn_at_bound(f"{what} on the calibration split", bound, correct)
    return bound is not None


def interval_of_temperature(decisions: Decisions, settings: Settings) -> Estimate:
    fitted = Temperature.fit(decisions.knowledge, decisions.is_right, settings.calibrate)
    _, example_R = np.unique(decisions.groups, return_inverse=True)
    return temperature_interval(
        fitted,
        decisions.knowledge,
        decisions.is_right,
        example_R,
        settings.calibrate,
        settings.runtime.seed,
    )


if __name__ == "__main__":
    run_stage(main, "calibrate", "name")
