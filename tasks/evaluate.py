"""Measure one model: how often it is right, and whether it knows when.

What calibrates its confidence is fitted on the calibration split and goes with it wherever it is
served; so does the threshold that keeps the promise of `serve.policy`. Questions with choices are
answered by choosing, open text by writing; every token of open text is also measured, given those
before it.

If machine.placement splits the model over several processes, the stage starts them itself.

Reads   data/model/MODEL/,
        data/prepare/{calibration,test}.parquet, data/prepare/ood_*.parquet
Writes  data/evaluate/MODEL/metrics.json, predictions.parquet, calibration.json
Run as  python -m tasks.evaluate MODEL   (normally through `dvc repro evaluate-MODEL`)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from firstkd.errors import ConfigError
from firstkd.measure.comparison import summary
from firstkd.measure.metrics import Predictions
from firstkd.models.folders import load_tokenizer, number_of_parameters
from firstkd.models.scoring import TokenScores
from firstkd.reproducibility import deterministic
from firstkd.settings import Settings, load_settings
from firstkd.train.distributed import join_ranks, present_ranks
from tasks.answers import Asked, set_name, test_files
from tasks.evaluation import write_evaluation
from tasks.layout import model_folder
from tasks.scores import group_numbers, plain
from tasks.stage import run_stage
from tasks.subject import Subject
from tasks.writing import Writing


def main(root: Path, model: str) -> None:
    settings = load_settings(root / "params.yaml")
    if model not in settings.measured_models:
        names = ", ".join(settings.measured_models)
        raise ConfigError(f"{model!r} is not a model in evaluate.models; allowed: {names}")
    deterministic(settings.runtime.seed, settings.runtime.threads)
    if settings.models[model].init.is_served:
        from tasks.evaluate_served import evaluate_served

        if present_ranks().is_first:
            evaluate_served(root, settings, model)
        return
    folder, ranks = model_folder(root, model), join_ranks()
    with settings.machine.placement.running(folder, "auto", ranks) as network:
        if ranks.is_first:
            tokenizer = load_tokenizer(folder)
            subject = Subject(model, network, tokenizer, settings.prompt, settings.evaluate)
            measure(root, subject, settings)


def measure(root: Path, subject: Subject, settings: Settings) -> None:
    """Raises DataValidationError as `write_evaluation` does."""
    prepared, seed = root / "data/prepare", settings.runtime.seed
    writing = Writing.fit(subject, prepared / "calibration.parquet", settings)
    weights = model_folder(root, subject.name).glob("*.safetensors")
    samples, tests = settings.evaluate.bootstrap_samples, test_files(prepared)
    facts = {
        "parameters": number_of_parameters(subject.network),
        "bytes": sum(path.stat().st_size for path in weights),
        "open_text": token_metrics(subject, tests, samples, seed),
    }
    write_evaluation(root, subject, writing, settings, facts)


def token_metrics(
    subject: Subject, files: Sequence[Path], samples: int, seed: int
) -> dict[str, Any]:
    """Return the token metrics of each test set that has examples without choices."""
    found = {}
    for file in files:
        if asked := Asked(file, has_choices=False):
            title = f"{subject.name} on {file.stem}, open text"
            groups, parts, done = group_numbers(asked), [], 0
            of_tokens = []
            for examples in asked:
                tokens = subject.score_tokens(examples, title)
                parts.append(token_predictions(tokens))
                of_tokens.append(groups[done + tokens.example_T.numpy()])
                done += len(examples)
            predictions, drawn = Predictions.concatenate(parts), np.concatenate(of_tokens)
            found[set_name(file)] = {
                "examples": done,
                "tokens": len(predictions),
                "raw": plain(summary(predictions, samples, seed, drawn)),
            }
    return found


def token_predictions(tokens: TokenScores) -> Predictions:
    """One decision per token, whose only candidate is the model's most probable token."""
    return Predictions.of(
        probabilities=tokens.confidence_T.double().numpy()[:, None],
        is_right=tokens.correct_T.numpy()[:, None],
        gold_probability=tokens.probability_T.double().numpy(),
    )


if __name__ == "__main__":
    run_stage(main, "evaluate", "model", lambda machine: machine.placement.measures_in_all)
