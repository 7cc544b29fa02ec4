"""Train one arm's student on the teacher's knowledge.

Reads   data/prune/ (the student's start), data/prepare/train.parquet, data/extract/train/,
        data/calibrate/RECALIBRATION.json
Writes  data/distill/ARM/ (a model folder, training.jsonl, deepspeed.json)
Run as  python -m tasks.distill ARM   (normally through `dvc repro distill@ARM`)

It starts itself as several processes where distill.processes asks for them.
"""

from pathlib import Path

from firstkd.data.examples import read_examples
from firstkd.data.prompts import Question, encode
from firstkd.errors import ConfigError, DataValidationError
from firstkd.files import read_json
from firstkd.models.folders import load_tokenizer
from firstkd.recalibration.table import from_json
from firstkd.reproducibility import deterministic
from firstkd.settings import load_settings
from firstkd.signals.knowledge import Kind, KnowledgeStore
from firstkd.terms.distillation import DistillationLoss, Lessons
from firstkd.terms.settings import Arm
from firstkd.train.loop import training_plan
from tasks.identity import knowledge_identity
from tasks.stage import run_stage
from tasks.training import train_stage


def main(root: Path, arm: str) -> None:
    settings = load_settings(root / "params.yaml")
    if arm not in settings.arms:
        raise ConfigError(f"{arm!r} is no arm of params.yaml; there are {', '.join(settings.arms)}")
    deterministic(settings.runtime.seed, settings.runtime.threads)
    start, data = root / "data/prune", root / "data/prepare/train.parquet"
    tokenizer = load_tokenizer(start)
    questions = encode(read_examples(data), tokenizer, settings.prompt)
    loss = open_loss(root, arm, settings.arms[arm], questions)
    # of the whole questions, whatever an arm needs of them: all arms see the same batches
    plan = training_plan(questions, settings.distill, settings.runtime.seed)
    if loss.choices is None:
        questions = [question.gold_only() for question in questions]
    train_stage(
        root,
        f"distill@{arm}",
        start=start,
        tokenizer=tokenizer,
        questions=questions,
        plan=plan,
        loss=loss,
        settings=settings.distill,
        inputs=[data, root / "data/extract/train", recalibration_file(root, settings.arms[arm])],
        others=[s.model_dump() for s in (settings.arms[arm], settings.prompt, settings.runtime)],
    )


def recalibration_file(root: Path, arm: Arm) -> Path:
    return root / "data/calibrate" / f"{arm.recalibration}.json"


def open_loss(root: Path, arm: str, weights: Arm, questions: list[Question]) -> DistillationLoss:
    """Open what of the teacher the arm learns from, and check that it is of these questions.

    Raises ConfigError where the arm learns from choices and no question has any.
    """
    if weights.choices and all(len(question.responses) == 1 for question in questions):
        raise ConfigError(
            f"params.yaml: arms.{arm}.choices: {weights.choices}, but no training question has "
            "choices; set it to 0 and learn from tokens"
        )
    fitted = read_json(recalibration_file(root, weights))

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
    run_stage(main, "distill", "arm", parallel=True)
