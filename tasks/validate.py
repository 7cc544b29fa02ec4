"""Check the examples with Great Expectations; a failed expectation stops the pipeline.

Reads   data/prepare/*.parquet, data/fetch/base/ (its tokenizer)
Writes  data/validate/summary.json; Data Docs as HTML, untracked, in logs/validate/data_docs/
Run as  python -m tasks.validate   (normally through `dvc repro validate`)

Warnings (choices given twice) are counted and logged.
"""

import logging
import os
from pathlib import Path
from typing import Any

import pandas as pd

from firstkd.data.examples import Example, read_examples
from firstkd.data.frames import flat_frames
from firstkd.data.prompts import encode
from firstkd.data.settings import PromptSettings
from firstkd.errors import ConfigError, DataValidationError
from firstkd.files import atomic_folder, read_json, write_json
from firstkd.imports import unimportable
from firstkd.models.settings import PruneSettings
from firstkd.settings import load_settings
from tasks.stage import log_folder, run_stage

log = logging.getLogger(__name__)

UNLIMITED = 2**31


def main(root: Path = Path(".")) -> None:
    # Great Expectations takes seconds to import and logs hundreds of lines meanwhile.
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    from tasks.expectations import run

    settings = load_settings(root / "params.yaml")
    check_depth(root / "data/fetch/base", settings.prune)
    files = {file.stem: file for file in sorted((root / "data/prepare").glob("*.parquet"))}
    splits = {split: read_examples(file) for split, file in files.items()}
    log.info("counting the tokens of %s examples", f"{sum(map(len, splits.values())):,}")
    lengths = token_lengths(splits, root / "data/fetch/base", settings.prompt)
    frames = flat_frames(splits, lengths)
    docs = log_folder(root, "validate") / "data_docs"
    outcomes = run(frames, settings.validate_, docs)
    report(outcomes, docs / "index.html")
    with atomic_folder(root / "data/validate") as folder:
        write_json(folder / "summary.json", summary(frames, outcomes))


def check_depth(model: Path, prune: PruneSettings) -> None:
    """Raise ConfigError where prune would, after hours of fine-tuning."""
    present = read_json(model / "config.json")["num_hidden_layers"]
    if prune.layers > present:
        raise ConfigError(f"prune.layers: {prune.layers}, but the model has {present}")


def token_lengths(
    splits: dict[str, list[Example]], model: Path, prompt: PromptSettings
) -> dict[str, list[tuple[int, int]]]:
    """Count the tokens of prompt and longest response, as the model will be given them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    whole = prompt.model_copy(update={"max_length": UNLIMITED})
    return {
        split: [
            (len(question.prompt), max(map(len, question.responses)))
            for question in (encode(examples, tokenizer, whole) if examples else [])
        ]
        for split, examples in splits.items()
    }


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
    # Counting tokens needs no torch, whose import takes seconds. transformers looks for it once,
    # and would advise to install it.
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
    with unimportable("torch"):
        from transformers import AutoTokenizer  # noqa: F401
    run_stage(main, "validate")
