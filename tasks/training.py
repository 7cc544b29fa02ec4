"""What both stages that train have in common: checkpoints, LoRA, and the folder they write.

Checkpoints lie in data/.train/STAGE-DIGEST, where DVC does not look, and are gone when the stage
is done. The digest is of everything that decides the result, so that nothing else goes on there.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from firstkd.data.prompts import Question
from firstkd.files import atomic_folder, sha256_of, write_json, write_json_lines
from firstkd.models.folders import save_model
from firstkd.models.lora import add_lora
from firstkd.train.distributed import Ranks, join_ranks
from firstkd.train.engine import deepspeed_config, load_to_train
from firstkd.train.loop import Loss, train
from firstkd.train.settings import MachineSettings, TrainingSettings
from tasks.identity import code_sha256
from tasks.stage import log_folder


def train_stage(
    root: Path,
    stage: str,
    *,
    start: Path,
    tokenizer: Any,
    questions: Sequence[Question],
    plan: Sequence[Sequence[int]],
    loss: Loss,
    settings: TrainingSettings,
    machine: MachineSettings,
    inputs: Sequence[Path],
    others: Any,
) -> None:
    """Train the model in `start` and write it, with its curve, to the stage's folder under data/.

    `inputs` are all files and folders that decide the result, `others` all other settings.
    """
    ranks = join_ranks()
    made_from = [settings.model_dump(), others]
    checkpoints = checkpoint_folder(root, stage, made_from, [start, *inputs], ranks)
    if not ranks.is_first:
        disable_progress_bar()
    model = load_to_train(start, settings, machine, ranks)
    tuned = add_lora(model, settings.lora) if settings.lora else None
    logs = log_folder(root, stage)
    curve = train(
        model, questions, plan, loss, settings, machine, logs / "curve.jsonl", checkpoints
    )
    if not ranks.is_first:
        return
    if tuned:
        model = tuned.merge_and_unload()
    with atomic_folder(root / "data" / stage.replace("@", "/")) as folder:
        save_model(model, tokenizer, folder)
        write_json_lines(folder / "training.jsonl", curve)
    # of this machine, so it is logged, not an output
    write_json(logs / "deepspeed.json", deepspeed_config(settings, machine, ranks.world_size))
    shutil.rmtree(checkpoints, ignore_errors=True)  # there may be none


def checkpoint_folder(
    root: Path, stage: str, made_from: Any, inputs: Sequence[Path], ranks: Ranks
) -> Path:
    """Return the folder for checkpoints of exactly this, and drop the stage's others."""

    def name() -> str:
        hashes = [sha256_of(path) for path in inputs]
        text = json.dumps([made_from, hashes, code_sha256()], sort_keys=True)
        return f"{stage}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    folder = root / "data/.train" / ranks.from_first(name)
    if ranks.is_first:
        for stale in set(folder.parent.glob(f"{stage}-*")) - {folder}:
            shutil.rmtree(stale)
    return folder
