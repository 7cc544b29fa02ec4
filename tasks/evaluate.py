"""Measure one model: how often it is right, and whether it knows.

Its own temperature is fitted on the calibration split, and goes with it wherever it is served; so
does the threshold on its confidence that keeps the promise of `serve.policy`.
Of questions with choices the answer counts, of open text every token, given those before it.

Reads   data/model/MODEL/,
        data/prepare/{calibration,test}.parquet, data/prepare/ood_*.parquet
Writes  data/evaluate/MODEL/metrics.json, predictions.parquet, calibration.json
Run as  python -m tasks.evaluate MODEL   (normally through `dvc repro evaluate-MODEL`)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from transformers import PreTrainedModel

from firstkd.data.examples import Example, read_examples
from firstkd.data.prompts import encode
from firstkd.data.settings import PromptSettings
from firstkd.errors import ConfigError
from firstkd.measure.comparison import summary
from firstkd.measure.metrics import Predictions
from firstkd.measure.settings import EvaluateSettings
from firstkd.models.folders import load_model, load_tokenizer
from firstkd.models.scoring import TokenScores, score_questions, score_tokens
from firstkd.reproducibility import deterministic
from firstkd.settings import load_settings
from tasks.evaluation import set_name, test_files, write_evaluation
from tasks.layout import model_folder
from tasks.scores import Scored, plain
from tasks.stage import run_stage


def main(root: Path, model: str) -> None:
    settings = load_settings(root / "params.yaml")
    if model not in settings.measured_models:
        names = ", ".join(settings.measured_models)
        raise ConfigError(f"{model!r} is not a model of evaluate.models; there are {names}")
    deterministic(settings.runtime.seed, settings.runtime.threads)
    folder = model_folder(root, model)
    subject = Subject.load(model, folder, settings.prompt, settings.evaluate)
    tests, seed = test_files(root / "data/prepare"), settings.runtime.seed
    facts = {
        "parameters": subject.network.num_parameters(),
        "bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        "open_text": open_text(subject, tests, settings.evaluate.bootstrap_samples, seed),
    }
    write_evaluation(root, model, settings, subject.score, facts)


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
        network, tokenizer = load_model(folder), load_tokenizer(folder)
        return cls(name, network, tokenizer, prompt, settings)

    def score(self, file: Path) -> Scored | None:
        """Score the choices of the questions that have any; None where none has."""
        examples = [example for example in read_examples(file) if example.choices]
        if not examples:
            return None
        return self.score_examples(examples, file.stem)

    def score_examples(self, examples: Sequence[Example], where: str) -> Scored:
        """Score the choices of questions, all of which have some."""
        questions = encode(examples, self.tokenizer, self.prompt)
        title = f"{self.name} on {where}"
        size, tokens = self.settings.micro_batch_size, self.settings.micro_batch_tokens
        return Scored.of(
            examples,
            score_questions(self.network, questions, size, title, tokens),
            by_one_token=all(len(r) == 1 for q in questions for r in q.responses),
        )

    def score_open_text(self, file: Path) -> tuple[int, TokenScores] | None:
        """How many examples have no choices, and the scores of their tokens; None without any."""
        examples = [example for example in read_examples(file) if not example.choices]
        if not examples:
            return None
        questions = encode(examples, self.tokenizer, self.prompt)
        title = f"{self.name} on {file.stem}, open text"
        size, tokens = self.settings.micro_batch_size, self.settings.micro_batch_tokens
        return len(questions), score_tokens(self.network, questions, size, title, tokens)


def open_text(subject: Subject, files: Sequence[Path], samples: int, seed: int) -> dict[str, Any]:
    """Return the metrics of each test set's tokens, where it has examples without choices."""
    found = {}
    for file in files:
        if scored := subject.score_open_text(file):
            examples, tokens = scored
            groups = tokens.example_T.numpy()
            found[set_name(file)] = {
                "examples": examples,
                "tokens": len(tokens.correct_T),
                "raw": plain(summary(token_predictions(tokens), samples, seed, groups)),
            }
    return found


def token_predictions(tokens: TokenScores) -> Predictions:
    """One decision per token, whose only candidate is what the model finds most probable."""
    return Predictions(
        probabilities=tokens.confidence_T.double().numpy()[:, None],
        is_right=tokens.correct_T.numpy()[:, None],
        gold_probability=tokens.probability_T.double().numpy(),
    )


if __name__ == "__main__":
    run_stage(main, "evaluate", "model")
