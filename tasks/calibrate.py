"""Fit the recalibrations that make the teacher's confidence honest.

Reads   data/extract/calibration/, data/prepare/calibration.parquet
Writes  data/calibrate/RECALIBRATION.json, metrics.json, reliability.png
Run as  python -m tasks.calibrate   (normally through `dvc repro calibrate`)
"""

import logging
from pathlib import Path
from typing import Any

import torch

from firstkd.examples import read_examples
from firstkd.files import atomic_folder, write_json
from firstkd.knowledge import Kind, Knowledge, KnowledgeStore
from firstkd.metrics import Predictions
from firstkd.models import load_tokenizer
from firstkd.plots import save_reliability
from firstkd.prompts import Question, encode
from firstkd.recalibration import RECALIBRATIONS, to_json
from firstkd.reproducibility import deterministic
from firstkd.settings import load_settings
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
        knowledge = store.decoded()
        is_right = knowledge.is_right(gold_ids(kind, questions))
        for name, recalibration in RECALIBRATIONS.items():
            best = recalibration.fit(knowledge.top_logprobs, is_right, settings.calibrate)
            fitted[name][kind] = to_json(best)
            after = predictions(best.apply(knowledge.top_logprobs), knowledge, is_right)
            metrics.setdefault(kind, {})[name] = after.values()
            log.info("%s decisions: %s, ECE %.3f", kind, best, metrics[kind][name]["ece"])
            diagrams[f"{kind}: {name}"] = after
    with atomic_folder(root / "data/calibrate") as folder:
        for name, by_kind in fitted.items():
            write_json(folder / f"{name}.json", by_kind)
        write_json(folder / "metrics.json", metrics)
        save_reliability(folder / "reliability.png", diagrams)


def stored_kinds(folder: Path) -> list[Kind]:
    kinds: list[Kind] = ["choice", "token"]
    return [kind for kind in kinds if (folder / kind).exists()]


def gold_ids(kind: Kind, questions: list[Question]) -> torch.Tensor:
    """Return per decision of the split what is right: the token's id, or the choice's index."""
    if kind == "choice":
        return torch.tensor([q.gold for q in questions if len(q.responses) > 1])
    return torch.tensor([token for q in questions for token in q.responses[q.gold or 0]])


def predictions(
    probabilities: torch.Tensor, knowledge: Knowledge, is_right: torch.Tensor
) -> Predictions:
    of_candidate = (probabilities * is_right).sum(-1)
    # what is right but no candidate keeps its share of whatever is left to the tail
    share = knowledge.gold_logprob.exp() / knowledge.tail_mass.clamp_min(1e-6)
    of_tail = share.clamp_max(1.0) * (1 - probabilities.sum(-1)).clamp_min(0)
    gold = torch.where(is_right.any(-1), of_candidate, of_tail)
    return Predictions(probabilities.numpy(), is_right.numpy(), gold.numpy())


if __name__ == "__main__":
    run_stage(main, "calibrate")
