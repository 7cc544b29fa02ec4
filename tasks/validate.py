"""Check the examples with Great Expectations; a failed expectation stops the pipeline.

Reads   data/prepare/*.parquet, the tokenizers of the models that were made elsewhere
Writes  data/validate/summary.json; Data Docs as HTML, untracked, in logs/validate/data_docs/
Run as  python -m tasks.validate   (normally through `dvc repro validate`)

Warnings (choices given twice) are counted and logged.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from firstkd.data.examples import Example, read_examples
from firstkd.data.frames import flat_frames
from firstkd.data.prompts import encode
from firstkd.data.settings import PromptSettings
from firstkd.errors import ConfigError, DataValidationError, about
from firstkd.files import atomic_folder, write_json
from firstkd.models.folders import load_model, load_tokenizer, read_config, vocabulary_size
from firstkd.models.self_test import check_model
from firstkd.models.tokenizers import vocabulary_digest
from firstkd.settings import Settings, load_settings
from tasks.layout import learned_from, log_folder, model_folder
from tasks.preflight import (
    check_layers,
    check_measured,
    check_signals,
    check_training,
    check_vocabulary,
)
from tasks.stage import run_stage

log = logging.getLogger(__name__)

UNLIMITED = 2**31


def main(root: Path = Path(".")) -> None:
    # Great Expectations takes seconds to import and logs hundreds of lines meanwhile.
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    from tasks.expectations import run

    settings = load_settings(root / "params.yaml")
    tokenizers = {name: load_tokenizer(model_folder(root, name)) for name in settings.lineage.roots}
    check_tokenizers(settings, tokenizers)
    check_templates(settings.prompt, tokenizers)
    files = {file.stem: file for file in sorted((root / "data/prepare").glob("*.parquet"))}
    splits = {split: read_examples(file) for split, file in files.items()}
    log.info("counting the tokens of %s examples", f"{sum(map(len, splits.values())):,}")
    lengths = token_lengths(splits, tokenizers, settings.prompt)
    warn_of_cuts(lengths, settings.prompt.max_length)
    frames = flat_frames(splits, lengths)
    docs = log_folder(root, "validate") / "data_docs"
    outcomes = run(frames, settings.validate_, docs)
    report(outcomes, docs / "index.html")
    check_settings(root, settings, tokenizers, splits)
    check_models(root, settings, tokenizers, splits)
    with atomic_folder(root / "data/validate") as folder:
        write_json(folder / "summary.json", summary(frames, outcomes))


def check_tokenizers(settings: Settings, tokenizers: Mapping[str, Any]) -> None:
    """Raise ConfigError where ids of two tokenizers would be compared."""
    for name, model in settings.models.items():
        own = settings.lineage.root(name)
        for term_name, term in (model.learn or {}).items():
            if term.signal is None:
                continue
            if not term.asks_ids and term.signal in settings.lineage.stored:
                continue
            other = settings.lineage.root(settings.lineage.read_with(term.signal))
            if vocabulary_digest(tokenizers[own]) != vocabulary_digest(tokenizers[other]):
                raise ConfigError(
                    f"params.yaml: models.{name}.learn.{term_name}.from: signals.{term.signal} "
                    f"is of the tokens of {other}'s tokenizer, and {name} has {own}'s; learn from "
                    "a stored signal of choices, whose texts mean the same to both"
                )


def check_templates(prompt: PromptSettings, tokenizers: Mapping[str, Any]) -> None:
    """Raise ConfigError for a model that is asked in its chat template and has none."""
    for name, tokenizer in tokenizers.items():
        if prompt.format == "chat" and not tokenizer.chat_template:
            raise ConfigError(
                f"params.yaml: prompt.format: chat: models.{name} has no chat template; name one "
                f"as models.{name}.init.chat_template, or set the format to cloze or letter"
            )


def check_settings(
    root: Path,
    settings: Settings,
    tokenizers: Mapping[str, Any],
    splits: Mapping[str, list[Example]],
) -> None:
    """Raise ConfigError or DataValidationError for what the data or the models cannot serve."""
    folders = {name: model_folder(root, name) for name in tokenizers}
    configs = {name: read_config(folder) for name, folder in folders.items()}
    check_layers(
        settings,
        {name: config.num_hidden_layers for name, config in configs.items()},
        {name: config.hidden_size for name, config in configs.items()},
    )
    check_measured(root / "data/prepare", splits)
    learned = [e for file in learned_from(root, settings) for e in splits[file.stem]]
    questions = {}
    for name, tokenizer in tokenizers.items():
        with about(f"models.{name}"):
            questions[name] = (
                encode(learned, tokenizer, settings.prompt),
                encode(splits["calibration"], tokenizer, settings.prompt),
            )
    for name in settings.models:
        check_training(settings, name, questions[settings.lineage.root(name)][0])
    check_signals(settings, {name: calibration for name, (_, calibration) in questions.items()})


def check_models(
    root: Path,
    settings: Settings,
    tokenizers: Mapping[str, Any],
    splits: Mapping[str, list[Example]],
) -> None:
    """Raise ArtifactError unless each model that was made elsewhere is scored right here."""
    examples = [example for split in splits.values() for example in split]
    for name, tokenizer in tokenizers.items():
        log.info("checking how the model “%s” is scored", name)
        model = load_model(model_folder(root, name), "fp32")
        with about(f"models.{name}"):
            check_model(model, tokenizer, encode(examples, tokenizer, settings.prompt))
        for other, descendant in settings.models.items():
            if settings.lineage.root(other) == name:
                with about(f"models.{other}"):
                    descendant.init.check(model)
        check_vocabulary(settings, name, vocabulary_size(model))


def token_lengths(
    splits: dict[str, list[Example]], tokenizers: Mapping[str, Any], prompt: PromptSettings
) -> dict[str, list[tuple[int, int]]]:
    """Count the tokens of prompt and longest response, by the tokenizer that makes most.

    As the models will be given them, but not cut.
    """
    whole = prompt.model_copy(update={"max_length": UNLIMITED})
    found: dict[str, list[tuple[int, int]]] = {
        split: [(0, 0)] * len(examples) for split, examples in splits.items()
    }
    for name, tokenizer in tokenizers.items():
        for split, examples in splits.items():
            with about(f"models.{name}"):
                questions = encode(examples, tokenizer, whole) if examples else []
            found[split] = [
                (max(prompt, len(q.prompt)), max([response, *map(len, q.responses)]))
                for (prompt, response), q in zip(found[split], questions, strict=True)
            ]
    return found


def warn_of_cuts(lengths: Mapping[str, list[tuple[int, int]]], max_length: int) -> None:
    for split, found in lengths.items():
        if cut := sum(prompt + response > max_length for prompt, response in found):
            log.warning(
                "data/prepare/%s.parquet: %s of %s examples are longer than prompt.max_length = %d "
                "and lose the start of their prompt",
                *(split, f"{cut:,}", f"{len(found):,}", max_length),
            )


def report(outcomes: dict[str, dict[str, Any]], docs: Path) -> None:
    """Log what only warns; raise DataValidationError naming all that failed, with their rows."""
    failures = []
    for split, expectations in outcomes.items():
        for name, outcome in sorted(expectations.items()):
            if outcome["success"]:
                continue
            line = f"data/prepare/{split}.parquet: {name}: {_seen(outcome)}"
            if outcome["severity"] == "warning":
                log.warning("%s", line)
            else:
                failures.append(line)
    if failures:
        listed = "\n  ".join(failures)
        raise DataValidationError(
            f"{len(failures)} expectations failed; correct the data, or the setting of params.yaml "
            f"in parentheses (all results: {docs}):\n  {listed}"
        )


def _seen(outcome: dict[str, Any]) -> str:
    """Say what was seen and which setting of params.yaml governs it."""
    if "observed" in outcome:
        return f"observed {outcome['observed']} ({outcome['setting']})"
    more = " …" if outcome["unexpected"] > len(outcome["ids"]) else ""
    ids = ", ".join(map(str, outcome["ids"]))
    return f"{outcome['unexpected']} rows: {ids}{more} ({outcome['setting']})"


def summary(frames: dict[str, pd.DataFrame], outcomes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        split: {
            "examples": len(frame),
            "groups": int(frame["group"].nunique()),
            "expectations": outcomes[split],
        }
        for split, frame in frames.items()
    }


if __name__ == "__main__":
    run_stage(main, "validate")
