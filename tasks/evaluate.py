"""Measure one model: how often it is right, and whether it knows.

Its own temperature is fitted on the calibration split, and goes with it wherever it is served.
Of questions with choices the answer counts, of open text every token, given those before it.

Reads   data/FOLDER/ (the model, from params.yaml: evaluate.models),
        data/prepare/{calibration,test}.parquet, data/prepare/ood_*.parquet
Writes  data/evaluate/MODEL/metrics.json, predictions.parquet, calibration.json
Run as  python -m tasks.evaluate MODEL   (normally through `dvc repro evaluate@MODEL`)
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from transformers import PreTrainedModel

from firstkd.errors import ConfigError, DataValidationError
from firstkd.examples import read_examples
from firstkd.files import atomic_folder, write_json
from firstkd.knowledge import Knowledge
from firstkd.metrics import Predictions
from firstkd.models import load_model, load_tokenizer
from firstkd.prompts import Question, encode
from firstkd.recalibration import Temperature
from firstkd.reproducibility import deterministic
from firstkd.scoring import TokenScores, score_questions, score_tokens
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
    size, samples = settings.evaluate.micro_batch_size, settings.evaluate.bootstrap_samples
    scored, open_text = {}, {}
    for path in [prepared / "calibration.parquet", prepared / "test.parquet", *out_of_domain]:
        questions = encode(read_examples(path), tokenizer, settings.prompt)
        title = f"{model} on {path.stem}"
        if with_choices := [q for q in questions if len(q.responses) > 1]:
            scored[path.stem] = Scored.by(network, with_choices, size, title)
        without = [q for q in questions if len(q.responses) == 1]
        if without and path.stem != "calibration":
            tokens = score_tokens(network, without, size, f"{title}, open text")
            open_text[path.stem.removeprefix("ood_")] = {
                "examples": len(without),
                "tokens": len(tokens.correct_T),
                "raw": token_predictions(tokens).summary(samples, settings.runtime.seed),
            }
    for split in ("calibration", "test"):
        if split not in scored:
            raise DataValidationError(
                f"{prepared / split}.parquet: no questions with choices, on which a model's "
                "temperature is fitted and its answers are measured"
            )
    fitted = scored.pop("calibration")
    decisions = Knowledge.of_choices(fitted.scores.log_softmax(-1), fitted.answer_index)
    temperature = Temperature.fit(decisions, fitted.is_right, settings.calibrate).temperature
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
        "open_text": open_text,
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
    by_one_token: bool
    """Whether every choice is a single token, so that its score is its probability's logarithm."""

    @classmethod
    def by(
        cls, network: PreTrainedModel, questions: Sequence[Question], size: int, title: str
    ) -> Self:
        """Score questions with choices, `size` at a time."""
        return cls(
            ids=[question.id for question in questions],
            scores=score_questions(network, questions, size, title),
            answer_index=torch.tensor([question.gold for question in questions]),
            by_one_token=all(len(r) == 1 for q in questions for r in q.responses),
        )

    @property
    def is_right(self) -> Tensor:
        return torch.arange(self.scores.shape[-1]) == self.answer_index[:, None]

    def predictions(self, temperature: float = 1.0) -> Predictions:
        scores = (self.scores.double() / temperature).numpy()
        return Predictions.of_choices(scores, self.answer_index.numpy())


def token_predictions(tokens: TokenScores) -> Predictions:
    """One decision per token, whose only candidate is what the model finds most probable."""
    return Predictions(
        probabilities=tokens.confidence_T.double().numpy()[:, None],
        is_right=tokens.correct_T.numpy()[:, None],
        gold_probability=tokens.probability_T.double().numpy(),
    )


def summarise(
    split: Scored, temperature: float, settings: EvaluateSettings, seed: int
) -> dict[str, Any]:
    """Return the metrics of the model as it is (`raw`) and at its own temperature.

    Both read confidence over the choices; where each choice is one token, `vocabulary` reads it
    over the whole vocabulary, as published evaluations do.
    """
    samples = settings.bootstrap_samples
    found: dict[str, Any] = {
        "examples": len(split.ids),
        "raw": split.predictions().summary(samples, seed),
        "calibrated": split.predictions(temperature).summary(samples, seed),
    }
    if split.by_one_token:
        answers = Predictions.of_answer_tokens(split.scores.numpy(), split.answer_index.numpy())
        found["vocabulary"] = answers.summary(samples, seed)
    return found


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
