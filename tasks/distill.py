"""Train one arm's student on the teacher's knowledge.

Reads   data/prune/ (the student's start), data/prepare/train.parquet, data/extract/train/,
        data/calibrate/RECALIBRATION.json
Writes  data/distill/ARM/ (a model folder, training.jsonl)
Run as  python -m tasks.distill ARM   (normally through `dvc repro distill@ARM`)
"""

from pathlib import Path

from firstkd.distillation import DistillationLoss
from firstkd.errors import ConfigError
from firstkd.examples import read_examples
from firstkd.files import atomic_folder, read_json, write_json_lines
from firstkd.knowledge import KnowledgeStore
from firstkd.models import load_model, load_tokenizer, save_model
from firstkd.prompts import Question, encode
from firstkd.recalibration import from_json
from firstkd.reproducibility import deterministic
from firstkd.settings import Arm, load_settings
from firstkd.training import train, training_plan
from tasks.identity import knowledge_identity
from tasks.stage import log_folder, run_stage


def main(root: Path, arm: str) -> None:
    settings = load_settings(root / "params.yaml")
    if arm not in settings.arms:
        raise ConfigError(f"{arm!r} is no arm of params.yaml; there are {', '.join(settings.arms)}")
    deterministic(settings.runtime.seed, settings.runtime.threads)
    start = root / "data/prune"
    tokenizer = load_tokenizer(start)
    examples = read_examples(root / "data/prepare/train.parquet")
    questions = encode(examples, tokenizer, settings.prompt)
    loss = open_loss(root, settings.arms[arm], questions)
    # of the whole questions, whatever an arm needs of them: all arms see the same batches
    plan = training_plan(questions, settings.distill, settings.runtime.seed)
    if loss.choice_knowledge is None:
        questions = [question.gold_only() for question in questions]
    model = load_model(start, settings.distill.precision)
    live_curve = log_folder(root, f"distill@{arm}") / "curve.jsonl"
    curve = train(model, questions, plan, loss, settings.distill, live_curve)
    with atomic_folder(root / "data/distill" / arm) as folder:
        save_model(model, tokenizer, folder)
        write_json_lines(folder / "training.jsonl", curve)


def open_loss(root: Path, arm: Arm, questions: list[Question]) -> DistillationLoss:
    """Open what of the teacher the arm learns from, and check that it is of these questions."""
    stores = {}
    for kind, weight in (("choice", arm.choices), ("token", arm.tokens)):
        if weight:
            store = stores[kind] = KnowledgeStore(root / "data/extract/train" / kind)
            store.check(knowledge_identity(root, "train"), questions)
    fitted = read_json(root / "data/calibrate" / f"{arm.recalibration}.json")
    return DistillationLoss(
        arm=arm,
        choice_knowledge=stores.get("choice"),
        token_knowledge=stores.get("token"),
        choice_recalibration=from_json(fitted["choice"]),
        token_recalibration=from_json(fitted["token"]),
    )


if __name__ == "__main__":
    run_stage(main, "distill", "arm")
