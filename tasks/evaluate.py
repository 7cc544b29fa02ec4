"""Measure one model: how often it is right, and whether it knows.

Its own temperature is fitted on the calibration split, and goes with it wherever it is served.

Reads   data/FOLDER/ (the model, from params.yaml: evaluate.models),
        data/prepare/{calibration,test}.parquet, data/prepare/ood_*.parquet
Writes  data/evaluate/MODEL/metrics.json, predictions.parquet, calibration.json
Run as  python -m tasks.evaluate MODEL   (normally through `dvc repro evaluate@MODEL`)
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from firstkd.errors import ConfigError, DataValidationError
from firstkd.examples import read_examples
from firstkd.files import atomic_folder, write_json
from firstkd.metrics import Predictions
from firstkd.models import load_model, load_tokenizer
from firstkd.prompts import encode
from firstkd.recalibration import Temperature
from firstkd.reproducibility import deterministic
from firstkd.scoring import score_questions
from firstkd.settings import EvaluateSettings, load_settings
from tasks.stage import run_stage

log = logging.getLogger(__name__)


def main(root: Path, model: str) -> None:
    settings = load_settings(root / "params.yaml")
    if model not in settings.evaluate.models:
        names = ", ".join(settings.evaluate.models)
        raise ConfigError(f"{model!r} is no model of evaluate.models; there are {names}")
    deterministic(settings.runtime.seed, settings.runtime.threads)
    folder = root / "data" / settings.evaluate.models[model]
    tokenizer, network = load_tokenizer(folder), load_model(folder, "bf16")
    prepared = root / "data/prepare"
    out_of_domain = sorted(prepared.glob("ood_*.parquet"))
    scored = {}
    for path in [prepared / "calibration.parquet", prepared / "test.parquet", *out_of_domain]:
        questions = encode(choice_examples(path), tokenizer, settings.prompt)
        title = f"{model} on {path.stem}"
        size = settings.evaluate.micro_batch_size
        scored[path.stem] = Scored(
            ids=[question.id for question in questions],
            scores=score_questions(network, questions, size, title),
            answer_index=torch.tensor([question.gold for question in questions]),
        )
    fitted = scored.pop("calibration")
    no_tail = torch.zeros(len(fitted.ids))
    temperature = Temperature.fit(
        fitted.scores.log_softmax(-1), no_tail, fitted.is_right, settings.calibrate
    ).temperature
    seed = settings.runtime.seed
    sets = {
        name.removeprefix("ood_"): summarise(split, temperature, settings.evaluate, seed)
        for name, split in scored.items()
    }
    metrics = {
        "parameters": network.num_parameters(),
        "bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        "temperature": temperature,
        "sets": sets,
    }
    tables = [
        prediction_table(name.removeprefix("ood_"), split, temperature)
        for name, split in scored.items()
    ]
    with atomic_folder(root / "data/evaluate" / model) as output:
        write_json(output / "metrics.json", metrics)
        calibration = {"temperature": temperature, "prompt": settings.prompt.model_dump()}
        write_json(output / "calibration.json", calibration)
        pq.write_table(pa.concat_tables(tables), output / "predictions.parquet")
    found: Any = sets["test"]
    log.info(
        "%s: accuracy %.3f, ECE %.3f, with its own temperature of %.2f %.3f",
        model,
        found["raw"]["accuracy"]["value"],
        found["raw"]["ece"]["value"],
        temperature,
        found["calibrated"]["ece"]["value"],
    )


@dataclass(frozen=True)
class Scored:
    """A split's questions with the model's scores [E, C] of their choices."""

    ids: list[str]
    scores: Tensor
    answer_index: Tensor

    @property
    def is_right(self) -> Tensor:
        return torch.arange(self.scores.shape[-1]) == self.answer_index[:, None]

    def predictions(self, temperature: float = 1.0) -> Predictions:
        scores = (self.scores.double() / temperature).numpy()
        return Predictions.of_choices(scores, self.answer_index.numpy())


def choice_examples(path: Path) -> list[dict[str, Any]]:
    examples = [example for example in read_examples(path) if example["choices"] is not None]
    if not examples:
        raise DataValidationError(f"{path}: no questions with choices, which evaluate measures")
    return examples


def summarise(
    split: Scored, temperature: float, settings: EvaluateSettings, seed: int
) -> dict[str, Any]:
    """Return the metrics of the model as it is (`raw`) and at its own temperature."""
    samples = settings.bootstrap_samples
    return {
        "examples": len(split.ids),
        "raw": split.predictions().summary(samples, seed),
        "calibrated": split.predictions(temperature).summary(samples, seed),
    }


def prediction_table(name: str, split: Scored, temperature: float) -> pa.Table:
    raw = split.predictions()
    return pa.table(
        {
            "set": [name] * len(split.ids),
            "id": split.ids,
            "answer_index": split.answer_index.numpy(),
            "predicted_index": raw.predicted_index,
            "confidence": raw.confidence,
            "calibrated_confidence": split.predictions(temperature).confidence,
            "correct": raw.correct,
            "scores": split.scores.tolist(),
        }
    )


if __name__ == "__main__":
    run_stage(main, "evaluate", "model")
