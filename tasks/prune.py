"""Make the student's start: the base model without the layers that matter least, healed.

What is left of a pruned model answers at chance. Healing teaches it the task's language by plain
cross-entropy, once and for all arms, so that these only differ in what comes after.

Reads   data/fetch/base/, data/prepare/train.parquet
Writes  data/prune/ (a model folder, metrics.json with each layer's influence, training.jsonl)
Run as  python -m tasks.prune   (normally through `dvc repro prune`)
"""

import logging
from pathlib import Path

from firstkd.errors import ConfigError
from firstkd.examples import read_examples
from firstkd.files import atomic_folder, write_json, write_json_lines
from firstkd.models import keep_layers, load_model, load_tokenizer, save_model
from firstkd.prompts import encode
from firstkd.pruning import block_influence, most_influential
from firstkd.reproducibility import deterministic
from firstkd.scoring import cross_entropy
from firstkd.settings import load_settings
from firstkd.training import train
from tasks.stage import log_folder, run_stage

log = logging.getLogger(__name__)


def main(root: Path = Path(".")) -> None:
    settings = load_settings(root / "params.yaml")
    deterministic(settings.runtime.seed, settings.runtime.threads)
    base, healing = root / "data/fetch/base", settings.prune.healing
    tokenizer, model = load_tokenizer(base), load_model(base, healing.precision)
    present = model.config.num_hidden_layers
    if settings.prune.layers > present:
        raise ConfigError(
            f"prune.layers: {settings.prune.layers}, but the base model has {present} layers"
        )
    examples = read_examples(root / "data/prepare/train.parquet")
    questions = encode(examples, tokenizer, settings.prompt)
    sample = questions[: settings.prune.examples]
    influence = block_influence(model, sample, healing.micro_batch_size)
    kept = most_influential(influence, settings.prune.layers)
    log.info("keeping layers %s of %d", kept, present)
    keep_layers(model, kept)
    gold = [question.gold_only() for question in questions]
    live_curve = log_folder(root, "prune") / "curve.jsonl"
    curve = train(model, gold, cross_entropy, healing, settings.runtime.seed, live_curve)
    with atomic_folder(root / "data/prune") as folder:
        save_model(model, tokenizer, folder)
        write_json(folder / "metrics.json", {"kept": kept, "influence": influence.tolist()})
        write_json_lines(folder / "training.jsonl", curve)


if __name__ == "__main__":
    run_stage(main, "prune")
