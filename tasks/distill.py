"""Train one arm's student on the teacher's knowledge.

Reads   data/prune/ (the student's start), data/prepare/train.parquet, data/extract/train/,
        data/calibrate/RECALIBRATION.json
Writes  data/distill/ARM/ (a model folder, training.jsonl)
Run as  python -m tasks.distill ARM   (normally through `dvc repro distill@ARM`)
"""

from pathlib import Path

from firstkd.distillation import DistillationLoss, Lessons
from firstkd.errors import ConfigError, DataValidationError
from firstkd.examples import read_examples
from firstkd.files import atomic_folder, read_json, write_json_lines
from firstkd.knowledge import Kind, KnowledgeStore
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
    loss = open_loss(root, arm, settings.arms[arm], questions)
    # of the whole questions, whatever an arm needs of them: all arms see the same batches
    plan = training_plan(questions, settings.distill, settings.runtime.seed)
    if loss.choices is None:
        questions = [question.gold_only() for question in questions]
    model = load_model(start, settings.distill.precision)
    live_curve = log_folder(root, f"distill@{arm}") / "curve.jsonl"
    curve = train(model, questions, plan, loss, settings.distill, live_curve)
    with atomic_folder(root / "data/distill" / arm) as folder:
        save_model(model, tokenizer, folder)
        write_json_lines(folder / "training.jsonl", curve)


def open_loss(root: Path, arm: str, weights: Arm, questions: list[Question]) -> DistillationLoss:
    """Open what of the teacher the arm learns from, and check that it is of these questions.

    Raises ConfigError where the arm learns from choices and no question has any.
    """
    if weights.choices and all(len(question.responses) == 1 for question in questions):
        raise ConfigError(
            f"params.yaml: arms.{arm}.choices: {weights.choices}, but no training question has "
            "choices; set it to 0 and learn from tokens"
        )
    fitted = read_json(root / "data/calibrate" / f"{weights.recalibration}.json")

    def lessons(kind: Kind) -> Lessons:
        store = KnowledgeStore(root / "data/extract/train" / kind)
        store.check(knowledge_identity(root, "train"), questions)
        if kind not in fitted:
            raise DataValidationError(
                f"data/calibrate/{weights.recalibration}.json has nothing for {kind} decisions: "
                "the calibration split has none, but the training split does"
            )
        return Lessons(store, from_json(fitted[kind]))

    return DistillationLoss(
        arm=weights,
        choices=lessons("choice") if weights.choices else None,
        tokens=lessons("token") if weights.tokens else None,
    )


if __name__ == "__main__":
    run_stage(main, "distill", "arm")
