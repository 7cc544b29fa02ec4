"""Fit the recalibrations that make the teacher's confidence honest.

Reads   data/extract/calibration/, data/prepare/calibration.parquet
Writes  data/calibrate/RECALIBRATION.json, metrics.json, reliability.png
Run as  python -m tasks.calibrate   (normally through `dvc repro calibrate`)
"""

import logging
from pathlib import Path
from typing import Any

import torch

from firstkd.data.examples import read_examples
from firstkd.data.prompts import Question, encode
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
from firstkd.signals.knowledge import Kind, Knowledge, KnowledgeStore
from tasks.identity import knowledge_identity
from tasks.stage import run_stage

log = logging.getLogger(__name__)


def main(root: Path = Path(".")) -> None:
    settings = load_settings(root / "params.yaml")
    deterministic(settings.runtime.seed, settings.runtime.threads)
    tokenizer = load_tokenizer(root / "data/finetune")
    examples = read_examples(root / "data/prepare/calibration.parquet")
    questions = encode(examples, tokenizer, settings.prompt)
    fitted: dict[str, dict[str, Any]] = {name: {} for name in RECALIBRATIONS}
    metrics: dict[str, Any] = {}
    diagrams: dict[str, Predictions] = {}
    made_from = knowledge_identity(root, "calibration")
    for kind in stored_kinds(root / "data/extract/calibration"):
        store = KnowledgeStore(root / "data/extract/calibration" / kind)
        store.check(made_from, questions)
        store.require("gold_logprob")
        knowledge = store.decoded()
        is_right = knowledge.is_right(gold_ids(kind, questions))
        metrics[kind] = {}
        for name, recalibration in RECALIBRATIONS.items():
            if recalibration is VocabularyTemperature and lacks_bends(knowledge):
                continue
            best = recalibration.fit(knowledge, is_right, settings.calibrate)
            fitted[name][kind] = to_json(best)
            after = predictions(best, knowledge, is_right)
            metrics[kind][name] = after.values()
            diagrams[f"{kind}: {name}"] = after
        low, high = temperature_interval(
            knowledge, is_right, settings.calibrate, settings.runtime.seed
        )
        value = fitted["temperature"][kind]["temperature"]
        metrics[kind]["temperature"]["temperature"] = {"value": value, "low": low, "high": high}
        log.info("%s decisions, T = %.2f (%.2f–%.2f):", kind, value, low, high)
        for line in table(metrics[kind]):
            log.info("  %s", line)
    with atomic_folder(root / "data/calibrate") as folder:
        for name, by_kind in fitted.items():
            write_json(folder / f"{name}.json", by_kind)
        write_json(folder / "metrics.json", metrics)
        save_reliability(folder / "reliability.png", diagrams)


def table(metrics: dict[str, Any]) -> list[str]:
    """Lines that compare the recalibrations; `none` is before any."""
    shown = ("accuracy", "ece", "nll", "brier")
    lines = [f"{'':23}" + "".join(f"{name:>10}" for name in shown)]
    for name, found in metrics.items():
        lines.append(f"{name:23}" + "".join(f"{found[metric]:10.3f}" for metric in shown))
    return lines


def stored_kinds(folder: Path) -> list[Kind]:
    kinds: list[Kind] = ["choice", "token"]
    return [kind for kind in kinds if (folder / kind).exists()]


def gold_ids(kind: Kind, questions: list[Question]) -> torch.Tensor:
    """Return per decision of the split what is right: the token's id, or the choice's index."""
    if kind == "choice":
        return torch.tensor([q.gold for q in questions if len(q.responses) > 1])
    return torch.tensor([token for q in questions for token in q.responses[q.gold or 0]])


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
    run_stage(main, "calibrate")
