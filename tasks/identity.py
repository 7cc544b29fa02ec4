"""What the teacher's knowledge and a stage's unfinished work are made from.

A stale or foreign store, and what another version of the code has left unfinished, differ in it.
"""

import hashlib
from pathlib import Path
from typing import Any

from firstkd.files import read_json, sha256_of, write_json
from firstkd.settings import load_settings

PACKAGES = ("firstkd", "tasks")


def knowledge_identity(root: Path, split: str) -> dict[str, Any]:
    """Return everything that decides what the knowledge of a split is."""
    settings = load_settings(root / "params.yaml")
    teacher = root / "data/finetune"
    return {
        "teacher_sha256": remembered_sha256(teacher, root / "data/.hashes/finetune.json"),
        "tokenizer_sha256": sha256_of(teacher / "tokenizer.json"),
        "data_sha256": sha256_of(root / f"data/prepare/{split}.parquet"),
        "prompt": settings.prompt.model_dump(),
        "precision": settings.finetune.precision,
        "top_k": settings.extract.top_k,
        "tail_nodes": settings.extract.tail_nodes,
    }


def remembered_sha256(folder: Path, memory: Path) -> str:
    """Return a folder's hash, which a large model's files are read for only once.

    The file `memory` keeps it, and counts while each file's size, time and inode are the same.
    """
    stamps = [_stamp(file) for file in sorted(folder.rglob("*")) if file.is_file()]
    found = read_json(memory) if memory.exists() else {}
    if found.get("stamps") != stamps:
        found = {"stamps": stamps, "sha256": sha256_of(folder)}
        write_json(memory, found)
    digest: str = found["sha256"]
    return digest


def _stamp(file: Path) -> list[str | int]:
    stat = file.stat()
    return [str(file), stat.st_size, stat.st_mtime_ns, stat.st_ino]


def code_sha256(place: Path = Path(__file__).parents[1]) -> str:
    """Return the hash of all modules of the library and the stages: results may depend on each."""
    modules = sorted(file for package in PACKAGES for file in (place / package).rglob("*.py"))
    lines = "".join(
        f"{sha256_of(file)}  {file.relative_to(place).as_posix()}\n" for file in modules
    )
    return hashlib.sha256(lines.encode()).hexdigest()
