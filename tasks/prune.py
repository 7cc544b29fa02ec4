"""Make the student's start: the base model without the layers that matter least.

Reads   data/fetch/base/, data/prepare/train.parquet
Writes  data/prune/ (a model folder, metrics.json with each layer's influence)
Run as  python -m tasks.prune   (normally through `dvc repro prune`)

What was saved is loaded again and must give the logits of the base model with those layers passed
over, or the stage ends with an error that names the family.
"""

import logging
from pathlib import Path

import torch

from firstkd.data.examples import read_examples
from firstkd.data.prompts import encode
from firstkd.errors import ConfigError
from firstkd.files import atomic_folder, write_json
from firstkd.models.folders import load_model, load_tokenizer, save_model
from firstkd.models.pruning import (
    block_influence,
    check_same_logits,
    keep_layers,
    logits_without,
    most_influential,
)
from firstkd.models.self_test import check_model
from firstkd.reproducibility import deterministic
from firstkd.settings import load_settings
from tasks.stage import run_stage

log = logging.getLogger(__name__)


def main(root: Path = Path(".")) -> None:
    settings = load_settings(root / "params.yaml")
    deterministic(settings.runtime.seed, settings.runtime.threads)
    base = root / "data/fetch/base"
    tokenizer, model = load_tokenizer(base), load_model(base, "bf16")
    present = model.config.num_hidden_layers
    if settings.prune.layers > present:
        raise ConfigError(f"prune.layers: {settings.prune.layers}, but the model has {present}")
    examples = read_examples(root / "data/prepare/train.parquet")[: settings.prune.examples]
    questions = encode(examples, tokenizer, settings.prompt)
    answered = [question.gold_only() for question in questions]
    influence = block_influence(
        model, answered, settings.prune.micro_batch_size, settings.prune.micro_batch_tokens
    )
    kept = most_influential(influence, settings.prune.layers)
    log.info("keeping layers %s of %d", kept, present)
    probe = torch.tensor([questions[0].prompt], device=model.device)
    expected = logits_without(model, kept, probe)
    keep_layers(model, kept)
    with atomic_folder(root / "data/prune") as folder:
        save_model(model, tokenizer, folder)
        saved = load_model(folder, "bf16")
        found = logits_without(saved, range(len(kept)), probe)
        check_same_logits(expected, found, model.config.model_type)
        check_model(load_model(folder, "fp32"), tokenizer, questions)
        write_json(folder / "metrics.json", {"kept": kept, "influence": influence.tolist()})


if __name__ == "__main__":
    run_stage(main, "prune")
