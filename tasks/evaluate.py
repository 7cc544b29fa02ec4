"""Measure one model: how often it is right, and whether it knows.

Its own temperature is fitted on the calibration split, and goes with it wherever it is served.
Of questions with choices the answer counts, of open text every token, given those before it.

Reads   data/model/MODEL/,
        data/prepare/{calibration,test}.parquet, data/prepare/ood_*.parquet
Writes  data/evaluate/MODEL/metrics.json, predictions.parquet, calibration.json
Run as  python -m tasks.evaluate MODEL   (normally through `dvc repro evaluate-MODEL`)
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from transformers import PreTrainedModel

from firstkd.data.examples import common_choices, read_examples
from firstkd.data.prompts import Question, encode
from firstkd.data.settings import PromptSettings
from firstkd.errors import ConfigError, DataValidationError
from firstkd.files import atomic_folder, write_json
from firstkd.measure.metrics import Predictions
from firstkd.measure.settings import EvaluateSettings
from firstkd.models.folders import load_model, load_tokenizer
from firstkd.models.scoring import TokenScores, score_questions, score_tokens
from firstkd.recalibration.kinds import Temperature
from firstkd.recalibration.settings import CalibrateSettings
from firstkd.reproducibility import deterministic
from firstkd.settings import load_settings
from firstkd.signals.knowledge import Knowledge
from tasks.layout import model_folder
from tasks.stage import run_stage

log = logging.getLogger(__name__)


def main(root: Path, model: str) -> None:
    settings = load_settings(root / "params.yaml")
    if model not in settings.evaluate.models:
        names = ", ".join(settings.evaluate.models)
        raise ConfigError(f"{model!r} is no model of evaluate.models; there are {names}")
    deterministic(settings.runtime.seed, settings.runtime.threads)
    folder = model_folder(root, model)
    subject = Subject.load(model, folder, settings.prompt, settings.evaluate)
    prepared, seed = root / "data/prepare", settings.runtime.seed
    calibration, tests = prepared / "calibration.parquet", test_files(prepared)
    scored = {file: found for file in [calibration, *tests] if (found := subject.score(file))}
    for file in (calibration, tests[0]):
        if file not in scored:
            raise DataValidationError(
                f"{file}: no questions with choices, on which a model's temperature is fitted and "
                "its answers are measured"
            )
    temperature = own_temperature(scored.pop(calibration), settings.calibrate)
    sets, predictions = measured(scored, temperature, settings.evaluate, seed)
    metrics = {
        "parameters": subject.network.num_parameters(),
        "bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        "temperature": temperature,
        "sets": sets,
        "open_text": open_text(subject, tests, settings.evaluate.bootstrap_samples, seed),
    }
    with atomic_folder(root / "data/evaluate" / model) as output:
        write_json(output / "metrics.json", metrics)
        kept = {
            "temperature": temperature,
            "prompt": settings.prompt.model_dump(),
            "choices": common_choices(read_examples(calibration)),
        }
        write_json(output / "calibration.json", kept)
        pq.write_table(predictions, output / "predictions.parquet")
    raw, calibrated = sets["test"]["raw"], sets["test"]["calibrated"]
    log.info(
        "%s: accuracy %.3f, ECE %.3f, with its own temperature of %.2f %.3f",
        model,
        raw["accuracy"]["value"],
        raw["ece"]["value"],
        temperature,
        calibrated["ece"]["value"],
    )


def test_files(prepared: Path) -> list[Path]:
    """The test set's questions, then those of each set out of domain."""
    return [prepared / "test.parquet", *sorted(prepared.glob("ood_*.parquet"))]


def set_name(file: Path) -> str:
    return file.stem.removeprefix("ood_")


@dataclass(frozen=True)
class Subject:
    """A model that is being measured."""

    name: str
    network: PreTrainedModel
    tokenizer: Any
    prompt: PromptSettings
    settings: EvaluateSettings

    @classmethod
    def load(
        cls, name: str, folder: Path, prompt: PromptSettings, settings: EvaluateSettings
    ) -> Self:
        network, tokenizer = load_model(folder, "bf16"), load_tokenizer(folder)
        return cls(name, network, tokenizer, prompt, settings)

    def score(self, file: Path) -> "Scored | None":
        """Score the choices of the questions that have any; None where none has."""
        questions = [q for q in self._questions(file) if len(q.responses) > 1]
        if not questions:
            return None
        return Scored(
            ids=[question.id for question in questions],
            scores=score_questions(
                self.network,
                questions,
                self.settings.micro_batch_size,
                f"{self.name} on {file.stem}",
                self.settings.micro_batch_tokens,
            ),
            answer_index=torch.tensor([question.gold for question in questions]),
            by_one_token=all(len(r) == 1 for q in questions for r in q.responses),
        )

    def score_open_text(self, file: Path) -> tuple[int, TokenScores] | None:
        """How many examples have no choices, and the scores of their tokens; None without any."""
        questions = [q for q in self._questions(file) if len(q.responses) == 1]
        if not questions:
            return None
        title = f"{self.name} on {file.stem}, open text"
        size, tokens = self.settings.micro_batch_size, self.settings.micro_batch_tokens
        return len(questions), score_tokens(self.network, questions, size, title, tokens)

    def _questions(self, file: Path) -> list[Question]:
        return encode(read_examples(file), self.tokenizer, self.prompt)


@dataclass(frozen=True)
class Scored:
    """A split's questions with the model's scores [E, C] of their choices."""

    ids: list[str]
    scores: Tensor
    answer_index: Tensor
    by_one_token: bool
    """Whether every choice is a single token, so that its score is its probability's logarithm."""

    @property
    def is_right(self) -> Tensor:
        return torch.arange(self.scores.shape[-1]) == self.answer_index[:, None]

    def predictions(self, temperature: float = 1.0) -> Predictions:
        scores = (self.scores.double() / temperature).numpy()
        return Predictions.of_choices(scores, self.answer_index.numpy())


def own_temperature(split: Scored, settings: CalibrateSettings) -> float:
    decisions = Knowledge.of_choices(split.scores.log_softmax(-1), split.answer_index)
    return Temperature.fit(decisions, split.is_right, settings).temperature


def measured(
    scored: Mapping[Path, Scored], temperature: float, settings: EvaluateSettings, seed: int
) -> tuple[dict[str, Any], pa.Table]:
    """Return the metrics of each test set, and every question's prediction."""
    sets = {
        set_name(file): summarise(split, temperature, settings, seed)
        for file, split in scored.items()
    }
    tables = [
        prediction_table(set_name(file), split, temperature) for file, split in scored.items()
    ]
    return sets, pa.concat_tables(tables)


def open_text(subject: Subject, files: Sequence[Path], samples: int, seed: int) -> dict[str, Any]:
    """Return the metrics of each test set's tokens, where it has examples without choices."""
    found = {}
    for file in files:
        if scored := subject.score_open_text(file):
            examples, tokens = scored
            found[set_name(file)] = {
                "examples": examples,
                "tokens": len(tokens.correct_T),
                "raw": token_predictions(tokens).summary(
                    samples, seed, groups=tokens.example_T.numpy()
                ),
            }
    return found


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
