"""Measure a registered student on the current test questions, as it is served.

This is not a stage: the student comes from the registry, to be compared with a challenger that was
tested on other questions.

Reads   MODEL/ (a student's folder), CALIBRATION (the calibration.json of its evaluation),
        data/prepare/{test,ood_*}.parquet
Writes  OUTPUT/metrics.json, OUTPUT/predictions.parquet, as `evaluate` does
Run as  python -m tasks.remeasure MODEL CALIBRATION OUTPUT   (by flows/remeasure.py)
"""

from pathlib import Path

from firstkd.data.settings import PromptSettings
from firstkd.files import atomic_folder, read_json, write_json
from firstkd.reproducibility import deterministic
from firstkd.settings import load_settings
from tasks.answers import Way, decide_all
from tasks.choosing import Choosing
from tasks.rows import write_predictions
from tasks.scores import measured
from tasks.stage import run_program
from tasks.subject import Subject
from tasks.writing import Writing


def main(root: Path, model: str, calibration: str, output: str) -> None:
    settings = load_settings(root / "params.yaml")
    deterministic(settings.runtime.seed, settings.runtime.threads)
    kept = read_json(Path(calibration))
    prompt = PromptSettings.model_validate(kept["prompt"])
    subject = Subject.load("champion", Path(model), prompt, settings.evaluate)
    ways: list[Way] = []
    if (temperature := kept["temperature"]) is not None:
        ways.append(Choosing(subject, temperature))
    if (words := kept.get("open_text")) is not None:  # earlier versions have none
        ways.append(Writing.of_kept(subject, words))
    decided = decide_all(ways, root / "data/prepare")
    answers = {name: answered for name, (_, answered) in decided.items()}
    sets = measured(answers, settings.evaluate, settings.runtime.seed)
    with atomic_folder(Path(output)) as folder:
        write_json(folder / "metrics.json", {"temperature": temperature, "sets": sets})
        write_predictions(folder / "predictions.parquet", answers)


if __name__ == "__main__":
    run_program(main, "remeasure", ["model", "calibration", "output"])
