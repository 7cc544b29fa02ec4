"""Fine-tune the base model on the training examples; the result is the teacher.

Reads   data/fetch/base/, data/prepare/train.parquet
Writes  data/finetune/ (a model folder, training.jsonl)
Run as  python -m tasks.finetune   (normally through `dvc repro finetune`)
"""

from pathlib import Path

from firstkd.examples import read_examples
from firstkd.files import atomic_folder, write_json_lines
from firstkd.models import load_model, load_tokenizer, save_model
from firstkd.prompts import encode
from firstkd.reproducibility import deterministic
from firstkd.scoring import cross_entropy
from firstkd.settings import load_settings
from firstkd.training import train, training_plan
from tasks.stage import log_folder, run_stage


def main(root: Path = Path(".")) -> None:
    settings = load_settings(root / "params.yaml")
    deterministic(settings.runtime.seed, settings.runtime.threads)
    base = root / "data/fetch/base"
    tokenizer = load_tokenizer(base)
    examples = read_examples(root / "data/prepare/train.parquet")
    questions = [q.gold_only() for q in encode(examples, tokenizer, settings.prompt)]
    model = load_model(base, settings.finetune.precision)
    live_curve = log_folder(root, "finetune") / "curve.jsonl"
    plan = training_plan(questions, settings.finetune, settings.runtime.seed)
    curve = train(model, questions, plan, cross_entropy, settings.finetune, live_curve)
    with atomic_folder(root / "data/finetune") as folder:
        save_model(model, tokenizer, folder)
        write_json_lines(folder / "training.jsonl", curve)


if __name__ == "__main__":
    run_stage(main, "finetune")
