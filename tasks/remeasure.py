"""Measure a registered student on the present test questions, as it is served.

No stage: the student comes from the registry, for the comparison with a challenger that was tested
on other questions than the student was.

Reads   MODEL/ (a student's folder), CALIBRATION (the calibration.json of its evaluation),
        data/prepare/{test,ood_*}.parquet
Writes  OUTPUT/metrics.json, OUTPUT/predictions.parquet, as `evaluate` does
Run as  python -m tasks.remeasure MODEL CALIBRATION OUTPUT   (by flows/remeasure.py)
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from firstkd.examples import read_examples
from firstkd.files import atomic_folder, read_json, write_json
from firstkd.models import load_model, load_tokenizer
from firstkd.prompts import encode
from firstkd.reproducibility import deterministic
from firstkd.settings import PromptSettings, load_settings
from tasks.evaluate import Scored, prediction_table, summarise
from tasks.stage import run_program


def main(root: Path, model: str, calibration: str, output: str) -> None:
    settings = load_settings(root / "params.yaml")
    deterministic(settings.runtime.seed, settings.runtime.threads)
    kept = read_json(Path(calibration))
    temperature, prompt = kept["temperature"], PromptSettings.model_validate(kept["prompt"])
    tokenizer, network = load_tokenizer(Path(model)), load_model(Path(model), "bf16")
    size, seed = settings.evaluate.micro_batch_size, settings.runtime.seed
    sets, tables = {}, []
    prepared = root / "data/prepare"
    for path in [prepared / "test.parquet", *sorted(prepared.glob("ood_*.parquet"))]:
        questions = encode(read_examples(path), tokenizer, prompt)
        with_choices = [question for question in questions if len(question.responses) > 1]
        if not with_choices:
            continue
        scored = Scored.by(network, with_choices, size, f"champion on {path.stem}")
        name = path.stem.removeprefix("ood_")
        sets[name] = summarise(scored, temperature, settings.evaluate, seed)
        tables.append(prediction_table(name, scored, temperature))
    with atomic_folder(Path(output)) as folder:
        write_json(folder / "metrics.json", {"temperature": temperature, "sets": sets})
        pq.write_table(pa.concat_tables(tables), folder / "predictions.parquet")


if __name__ == "__main__":
    run_program(main, "remeasure", ["model", "calibration", "output"])
