"""Refit a registered student's temperature and threshold on newer labelled questions.

This is not a stage: the student comes from the registry and is not trained; the result goes back
there, through the gate. Questions that the current splits learn from or test on are left out.

Reads   MODEL/ (a student's folder), EVALUATION/ (its evaluation), QUESTIONS (a file),
        data/prepare/*.parquet
Writes  OUTPUT/metrics.json, predictions.parquet, calibration.json, as `evaluate` does
Run as  python -m tasks.recalibrate MODEL EVALUATION QUESTIONS OUTPUT   (by flows/recalibrate.py)
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from firstkd.data.examples import Example, normalise, read_examples
from firstkd.data.readers import read
from firstkd.data.settings import DatasetSource, PromptSettings
from firstkd.errors import DataValidationError
from firstkd.files import atomic_folder, read_json, sha256_of
from firstkd.reproducibility import deterministic
from firstkd.serving.promise import Promise
from firstkd.settings import load_settings
from firstkd.words import counted
from tasks.choosing import Choosing
from tasks.fitted import fitted
from tasks.scores import under
from tasks.stage import run_program
from tasks.subject import Subject
from tasks.writing import Writing

NAME = "newer"
log = logging.getLogger(__name__)


def main(root: Path, model: str, evaluation: str, questions: str, output: str) -> None:
    settings, prepared = load_settings(root / "params.yaml"), root / "data/prepare"
    deterministic(settings.runtime.seed, settings.runtime.threads)
    before, kept = (read_json(Path(evaluation) / f"{n}.json") for n in ("metrics", "calibration"))
    newer = read_questions(Path(questions))
    unseen = list(without_seen(newer, prepared))
    log.info(
        "%s: in no split but calibration: %d of %s",
        *(questions, len(unseen), counted(len(newer), "question")),
    )
    fewest = settings.validate_.min_examples.calibration
    if len(unseen) < fewest:
        raise DataValidationError(
            f"{questions}: {counted(len(unseen), 'question')} in no split but calibration; "
            f"validate.min_examples.calibration requires {fewest}"
        )
    prompt = PromptSettings.model_validate(kept["prompt"])
    subject = Subject.load(Path(model).name, Path(model), prompt, settings.evaluate)
    if kept["temperature"] is None:
        raise DataValidationError(
            f"{subject.name} was calibrated on open text alone; questions with choices cannot "
            "recalibrate it, so retrain instead"
        )
    fitted_on = subject.score(unseen, f"{subject.name} on {NAME}")
    words = kept.get("open_text")
    writing = Writing.of_kept(subject, words) if words else None
    choosing = Choosing.of(subject, [unseen], fitted_on, settings)
    found = fitted(subject, choosing, writing, prepared, settings)
    promise = Promise(**kept["policy"]) if kept.get("policy") else None
    newest: dict[str, Any] = {"questions": len(unseen), "temperature_before": kept["temperature"]}
    if promise is not None:
        asked = fitted_on.at(kept["temperature"], [unseen])
        samples, seed = settings.evaluate.bootstrap_samples, settings.runtime.seed
        held = under(promise, asked, samples, seed)
        answers = round(held["coverage"]["value"] * len(unseen))
        newest["promise_before"] = {**held, "answers": answers, "max_error": promise.max_error}
    with atomic_folder(Path(output)) as folder:
        found.write(folder, {**before, **found.metrics, "recalibrated": newest})


def read_questions(file: Path) -> list[Example]:
    """Read labelled questions, each once; raises DataValidationError as for other data sets."""
    if not file.is_file():
        raise DataValidationError(f"{file} is missing: name a file of labelled questions")
    dataset = DatasetSource(
        source=f"path:{file}", sha256=sha256_of(file), format="questions", role="calibration"
    )
    found: dict[object, Example] = {}
    for example in read(file, dataset, NAME):
        found.setdefault((normalise(example.asked), example.choices), example)
    return [example for example in found.values() if example.choices and example.response]


def without_seen(examples: Iterable[Example], prepared: Path) -> Iterable[Example]:
    """Yield examples that share no question or passage with a split learned from or tested on.

    The student's calibration questions may come again: it learned nothing from them.
    """
    asked, groups = set[str](), set[str | None]()
    for file in sorted(prepared.glob("*.parquet")):
        if file.stem != "calibration":
            for example in read_examples(file):
                asked.add(normalise(example.asked))
                groups.add(example.group)
    groups.discard(None)
    for example in examples:
        if normalise(example.asked) not in asked and example.group not in groups:
            yield example


if __name__ == "__main__":
    run_program(main, "recalibrate", ["model", "evaluation", "questions", "output"])
