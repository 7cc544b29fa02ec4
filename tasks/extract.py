"""Keep the teacher's knowledge: the top-k tokens of every response, the choices of every question.

Reads   data/finetune/ (the teacher), data/prepare/{train,calibration}.parquet
Writes  data/extract/{train,calibration}/{token,choice}/ (knowledge stores), metrics.json
Run as  python -m tasks.extract   (normally through `dvc repro extract`)
"""

from pathlib import Path
from typing import Any

import torch

from firstkd.capture import capture
from firstkd.examples import read_examples
from firstkd.files import atomic_folder, write_json
from firstkd.knowledge import KnowledgeStore
from firstkd.models import load_model, load_tokenizer
from firstkd.prompts import encode
from firstkd.reproducibility import deterministic
from firstkd.settings import load_settings
from tasks.identity import knowledge_identity
from tasks.stage import run_stage

SPLITS = ("train", "calibration")


def main(root: Path = Path(".")) -> None:
    settings = load_settings(root / "params.yaml")
    deterministic(settings.runtime.seed, settings.runtime.threads)
    teacher = root / "data/finetune"
    tokenizer = load_tokenizer(teacher)
    model = load_model(teacher, settings.finetune.precision)
    with atomic_folder(root / "data/extract") as folder:
        metrics = {}
        for split in SPLITS:
            examples = read_examples(root / f"data/prepare/{split}.parquet")
            questions = encode(examples, tokenizer, settings.prompt)
            capture(
                model, questions, settings.extract, folder / split, knowledge_identity(root, split)
            )
            metrics[split] = concentration(folder / split / "token")
        write_json(folder / "metrics.json", metrics)


def concentration(folder: Path) -> dict[str, Any]:
    """How much of the teacher's probability the top-1 … top-k hold, on average over tokens."""
    store = KnowledgeStore(folder)
    tokens = sum(map(len, store.shards))
    sums = sum(shard.top_logprobs.double().exp().cumsum(-1).sum(0) for shard in store.shards)
    cumulative = torch.as_tensor(sums) / tokens
    return {
        "tokens": tokens,
        "cumulative_mass": {f"top_{k + 1}": float(mass) for k, mass in enumerate(cumulative)},
    }


if __name__ == "__main__":
    run_stage(main, "extract")
