"""What the teacher's knowledge is made from, by which a stale or foreign store is told."""

from pathlib import Path
from typing import Any

from firstkd.files import sha256_of
from firstkd.settings import load_settings


def knowledge_identity(root: Path, split: str) -> dict[str, Any]:
    """Return everything that decides what the knowledge of a split is."""
    settings = load_settings(root / "params.yaml")
    teacher = root / "data/finetune"
    return {
        "teacher_sha256": sha256_of(teacher),
        "tokenizer_sha256": sha256_of(teacher / "tokenizer.json"),
        "data_sha256": sha256_of(root / f"data/prepare/{split}.parquet"),
        "prompt": settings.prompt.model_dump(),
        "precision": settings.finetune.precision,
        "top_k": settings.extract.top_k,
        "tail_nodes": settings.extract.tail_nodes,
    }
