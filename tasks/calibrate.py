"""Fit the recalibrations that make the teacher's confidence honest.

Reads   data/signal/NAME/calibration/, data/prepare/calibration.parquet
Writes  data/calibrate/NAME/RECALIBRATION.json, metrics.json, reliability.png
Run as  python -m tasks.calibrate NAME   (normally through `dvc repro calibrate-NAME`)
"""

import logging
from pathlib import Path
from typing import Any

import torch

from firstkd.data.examples import read_examples
from firstkd.data.prompts import encode
from firstkd.errors import ConfigError
from firstkd.files import atomic_folder, write_json
from firstkd.measure.metrics import Predictions
from firstkd.measure.plots import save_reliability
from firstkd.models.folders import load_tokenizer
from firstkd.recalibration.kinds import (
    RECALIBRATIONS,
    Recalibration,
    VocabularyTemperature,
    temperature_interval,
    to_json,
)
from firstkd.reproducibility import deterministic
from firstkd.settings import load_settings
from firstkd.signals.knowledge import Knowledge
from firstkd.signals.store import SignalStore
from tasks.layout import model_folder, prepared, signal_folder
from tasks.stage import run_stage

log = logging.getLogger(__name__)


def main(root: Path, name: str) -> None:
    settings = load_settings(root / "params.yaml")
    if name not in settings.signals:
        raise ConfigError(f"there is no signals.{name}; there are {', '.join(settings.signals)}")
    deterministic(settings.runtime.seed, settings.runtime.threads)
    signal = settings.signals[name]
    tokenizer = load_tokenizer(model_folder(root, settings.lineage.read_with(name)))
    questions = encode(read_examples(prepared(root, "calibration")), tokenizer, settings.prompt)
    store = SignalStore(signal_folder(root, name, "calibration"))
    knowledge, right = signal.decisions(store.whole(), store.facts), signal.right(questions)
    if signal.has_token_ids:
        store.require("gold_logprob")
    elif len(knowledge):
        knowledge = Knowledge.of_choices(knowledge.top_logprobs, right)
    is_right = knowledge.is_right(right)
    fitted: dict[str, dict[str, Any]] = {}
    metrics: dict[str, Any] = {}
    diagrams: dict[str, Predictions] = {}
    for kind, recalibration in RECALIBRATIONS.items():
        if recalibration is VocabularyTemperature and lacks_bends(knowledge):
            continue
        best = recalibration.fit(knowledge, is_right, settings.calibrate)
        fitted[kind] = to_json(best)
        diagrams[kind] = predictions(best, knowledge, is_right)
        metrics[kind] = diagrams[kind].values()
    low, high = temperature_interval(knowledge, is_right, settings.calibrate, settings.runtime.seed)
    value = fitted["temperature"]["temperature"]
    metrics["temperature"]["temperature"] = {"value": value, "low": low, "high": high}
    log.info("signals.%s, T = %.2f (%.2f–%.2f):", name, value, low, high)
    for line in table(metrics):
        log.info("  %s", line)
    with atomic_folder(root / "data/calibrate" / name) as folder:
        for kind, best_found in fitted.items():
            write_json(folder / f"{kind}.json", best_found)
        write_json(folder / "metrics.json", metrics)
        save_reliability(folder / "reliability.png", diagrams)


def table(metrics: dict[str, Any]) -> list[str]:
    """Lines that compare the recalibrations; `none` is before any."""
    shown = ("accuracy", "ece", "nll", "brier")
    lines = [f"{'':23}" + "".join(f"{name:>10}" for name in shown)]
    for name, found in metrics.items():
        lines.append(f"{name:23}" + "".join(f"{found[metric]:10.3f}" for metric in shown))
    return lines


def lacks_bends(knowledge: Knowledge) -> bool:
    """Whether there is a tail of which nothing but its mass is kept."""
    has_tail = knowledge.vocabulary_size > knowledge.top_ids.shape[1]
    return has_tail and not knowledge.tail_bends.shape[1]


def predictions(
    recalibration: Recalibration, knowledge: Knowledge, is_right: torch.Tensor
) -> Predictions:
    probabilities = recalibration.apply(knowledge)
    if isinstance(recalibration, VocabularyTemperature):
        gold = recalibration.gold_probability(knowledge)
    else:
        of_candidate = (probabilities * is_right).sum(-1)
        # what is right but no candidate keeps its share of whatever is left to the tail
        share = knowledge.gold_logprob.exp() / knowledge.tail_mass.clamp_min(1e-6)
        of_tail = share.clamp_max(1.0) * (1 - probabilities.sum(-1)).clamp_min(0)
        gold = torch.where(is_right.any(-1), of_candidate, of_tail)
    return Predictions(probabilities.numpy(), is_right.numpy(), gold.numpy())


if __name__ == "__main__":
    run_stage(main, "calibrate", "name")
