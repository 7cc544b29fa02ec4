"""Keep the teacher's knowledge: the top-k tokens of every response, the choices of every question.

Reads   data/finetune/ (the teacher), data/prepare/{train,calibration}.parquet
Writes  data/extract/{train,calibration}/{token,choice}/ (knowledge stores), metrics.json,
        concentration.png
Run as  python -m tasks.extract   (normally through `dvc repro extract`)

It starts itself as several processes where extract.processes asks for them. What an interrupted run
has captured lies in data/.extract/, where the next run goes on.
"""

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch

from firstkd.data.examples import read_examples
from firstkd.data.prompts import encode
from firstkd.files import replace_folder, write_json
from firstkd.measure.figures import save_concentration
from firstkd.models.folders import load_model, load_tokenizer
from firstkd.reproducibility import deterministic
from firstkd.settings import load_settings
from firstkd.signals.capture import capture, finish
from firstkd.signals.knowledge import KnowledgeStore
from firstkd.train.distributed import Ranks, join_ranks
from tasks.identity import knowledge_identity
from tasks.stage import run_stage

log = logging.getLogger(__name__)

SPLITS = ("train", "calibration")
DENSE_BYTES = 2
"""Of one probability of the whole distribution, kept as float16."""


def main(root: Path = Path(".")) -> None:
    settings = load_settings(root / "params.yaml")
    deterministic(settings.runtime.seed, settings.runtime.threads)
    ranks = join_ranks()
    identities = {split: knowledge_identity(root, split) for split in SPLITS}
    made_from = [identities, settings.extract.model_dump(exclude={"processes"})]
    partial = partial_folder(root, made_from, ranks)
    teacher = root / "data/finetune"
    tokenizer = load_tokenizer(teacher)
    model = load_model(teacher, settings.finetune.precision)
    vocabulary_size = min(len(tokenizer), model.config.vocab_size)  # embeddings may be padded
    stores = {}
    for split in SPLITS:
        examples = read_examples(root / f"data/prepare/{split}.parquet")
        questions = encode(examples, tokenizer, settings.prompt)
        stores[split] = capture(
            model, questions, settings.extract, vocabulary_size, partial / split, ranks
        )
    ranks.barrier()
    if not ranks.is_first:
        return
    metrics = {}
    for split in SPLITS:
        finish(partial / split, stores[split], identities[split])
        metrics[split] = concentration(partial / split / "token")
        warn_of_flat_data(split, metrics[split], settings.extract.min_top_k_mass)
    write_json(partial / "metrics.json", metrics)
    save_concentration(
        partial / "concentration.png",
        {split: list(found["cumulative_mass"].values()) for split, found in metrics.items()},
    )
    replace_folder(partial, root / "data/extract")
    partial.parent.rmdir()


def partial_folder(root: Path, made_from: Any, ranks: Ranks) -> Path:
    """Return the folder of what was captured so far of exactly this, and drop all other."""
    name = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
    folder = root / "data/.extract" / name
    if ranks.is_first and folder.parent.exists():
        for stale in set(folder.parent.iterdir()) - {folder}:
            shutil.rmtree(stale)
        for half_written in folder.rglob(".*"):  # by us or by safetensors
            half_written.unlink()
    ranks.barrier()
    if folder.exists():
        log.info("going on from the shards that an interrupted run has left")
    return folder


def concentration(folder: Path) -> dict[str, Any]:
    """How much of the teacher's probability the top-1 … top-k hold, on average over tokens."""
    store = KnowledgeStore(folder)
    cumulative = torch.zeros(store.layout.top_k, dtype=torch.float64)
    for shard in store.shards:
        cumulative += shard["top_logprobs"].double().exp().cumsum(-1).sum(0)
    stored = sum((folder / shard["file"]).stat().st_size for shard in store.manifest["shards"])
    return {
        "tokens": len(store),
        "cumulative_mass": {
            f"top_{k + 1}": float(mass) / len(store) for k, mass in enumerate(cumulative)
        },
        "bytes": stored,
        "dense_bytes": len(store) * store.layout.vocabulary_size * DENSE_BYTES,
    }


def warn_of_flat_data(split: str, found: dict[str, Any], floor: float) -> None:
    name, mass = list(found["cumulative_mass"].items())[-1]
    if mass < floor:
        log.warning(
            "%s: %s tokens hold only %.1f %% of the teacher's probability, less than "
            "extract.min_top_k_mass = %g; raise extract.top_k",
            split,
            name.replace("_", "-"),
            100 * mass,
            floor,
        )


if __name__ == "__main__":
    run_stage(main, "extract", parallel=True)
