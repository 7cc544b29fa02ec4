"""Folders that keep partial results of a stage until all of them are there."""

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from firstkd.train.distributed import Ranks
from tasks.code import PACKAGES, code_sha256

log = logging.getLogger(__name__)


def partial_folder(
    place: Path, name: str, made_from: Any, ranks: Ranks, packages: Sequence[str] = PACKAGES
) -> Path:
    """Return the folder in `place` for partial results of exactly this, and drop the stale ones.

    `packages` are those whose code decides them.
    """
    text = json.dumps([made_from, code_sha256(packages)], sort_keys=True)
    folder = place / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if ranks.is_first and place.exists():
        for stale in set(place.glob(f"{name}-*")) - {folder}:
            log.info("discarding partial results of other settings, data or code: %s", stale)
            shutil.rmtree(stale)
        for half_written in folder.rglob(".*"):  # by us or by safetensors
            if not half_written.is_dir():
                half_written.unlink()
    ranks.barrier()
    if folder.exists():
        log.info("resuming from the shards of an interrupted run")
    return folder
