"""Fine-tune the base model on the training examples; the result is the teacher.

Reads   data/fetch/base/, data/prepare/train.parquet
Writes  data/finetune/ (a model folder, training.jsonl)
Run as  python -m tasks.finetune   (normally through `dvc repro finetune`)

It starts itself as several processes if machine.processes asks for them.
"""

from pathlib import Path

from firstkd.data.examples import read_examples
from firstkd.data.prompts import encode
from firstkd.models.folders import load_tokenizer
from firstkd.models.scoring import cross_entropy
from firstkd.reproducibility import deterministic
from firstkd.settings import load_settings
from firstkd.train.loop import training_plan
from tasks.stage import run_stage
from tasks.training import train_stage


def main(root: Path = Path(".")) -> None:
    settings = load_settings(root / "params.yaml")
    deterministic(settings.runtime.seed, settings.runtime.threads)
    base, data = root / "data/fetch/base", root / "data/prepare/train.parquet"
    tokenizer = load_tokenizer(base)
    questions = [q.gold_only() for q in encode(read_examples(data), tokenizer, settings.prompt)]
    train_stage(
        root,
        "finetune",
        start=base,
        tokenizer=tokenizer,
        questions=questions,
        plan=training_plan(questions, settings.finetune, settings.runtime.seed),
        loss=cross_entropy,
        settings=settings.finetune,
        machine=settings.machine,
        inputs=[data],
        others=[settings.prompt.model_dump(), settings.runtime.model_dump()],
    )


if __name__ == "__main__":
    run_stage(main, "finetune", parallel=True)
