"""Measure a registered student on the present test questions, as it is served.

No stage: the student comes from the registry, for the comparison with a challenger that was tested
on other questions than the student was.

Reads   MODEL/ (a student's folder), CALIBRATION (the calibration.json of its evaluation),
        data/prepare/{test,ood_*}.parquet
Writes  OUTPUT/metrics.json, OUTPUT/predictions.parquet, as `evaluate` does
Run as  python -m tasks.remeasure MODEL CALIBRATION OUTPUT   (by flows/remeasure.py)
"""

from pathlib import Path

import pyarrow.parquet as pq

from firstkd.data.settings import PromptSettings
from firstkd.files import atomic_folder, read_json, write_json
from firstkd.reproducibility import deterministic
from firstkd.settings import load_settings
from tasks.evaluate import Subject
from tasks.evaluation import score_tests
from tasks.scores import measured
from tasks.stage import run_program


def main(root: Path, model: str, calibration: str, output: str) -> None:
    settings = load_settings(root / "params.yaml")
    deterministic(settings.runtime.seed, settings.runtime.threads)
    kept = read_json(Path(calibration))
    temperature, prompt = kept["temperature"], PromptSettings.model_validate(kept["prompt"])
    subject = Subject.load("champion", Path(model), prompt, settings.evaluate)
    scored = score_tests(root / "data/prepare", subject.score)
    sets, predictions = measured(scored, temperature, settings.evaluate, settings.runtime.seed)
    with atomic_folder(Path(output)) as folder:
        write_json(folder / "metrics.json", {"temperature": temperature, "sets": sets})
        pq.write_table(predictions, folder / "predictions.parquet")


if __name__ == "__main__":
    run_program(main, "remeasure", ["model", "calibration", "output"])
