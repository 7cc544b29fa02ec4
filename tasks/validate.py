"""Check the examples with Great Expectations; a failed expectation stops the pipeline.

Reads   data/prepare/*.parquet, the tokenizers of the models that were made elsewhere
Writes  data/validate/summary.json; Data Docs as HTML, untracked, in logs/validate/data_docs/
Run as  python -m tasks.validate   (normally through `dvc repro validate`)

Warnings (duplicate choices) are counted and logged.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from firstkd.data.examples import example_chunks
from firstkd.data.frames import Owners, answer_places, flat_frame
from firstkd.data.prompts import Question, encode
from firstkd.data.settings import PromptSettings
from firstkd.errors import ConfigError, DataValidationError, about
from firstkd.files import atomic_folder, write_json
from firstkd.models.folders import load_tokenizer
from firstkd.models.tokenizers import vocabulary_digest
from firstkd.settings import Settings, load_settings
from firstkd.words import counted
from tasks.checks import Checks
from tasks.layout import log_folder, model_folder
from tasks.stage import run_stage
from tasks.viewing import UNLIMITED

if TYPE_CHECKING:
    from tasks.expectations import Validation

log = logging.getLogger(__name__)


def main(root: Path = Path(".")) -> None:
    # Great Expectations takes seconds to import and logs hundreds of lines as it does.
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    from tasks.expectations import Validation

    settings = load_settings(root / "params.yaml")
    tokenizers = {name: load_tokenizer(model_folder(root, name)) for name in settings.lineage.roots}
    check_tokenizers(settings, tokenizers)
    check_templates(settings.prompt, tokenizers)
    files = {file.stem: file for file in sorted((root / "data/prepare").glob("*.parquet"))}
    owners = Owners.of({split: example_chunks(file) for split, file in files.items()})
    docs = log_folder(root, "validate") / "data_docs"
    validation, checks = Validation(settings.validate_, docs), Checks(root, settings, tokenizers)
    for split, file in files.items():
        log.info("validating %s examples in %s", f"{owners.examples(split):,}", file)
        validate_split(validation, checks, split, file, owners, tokenizers, settings.prompt)
    outcomes = validation.finish()
    report(outcomes, docs / "index.html")
    checks.finish()
    with atomic_folder(root / "data/validate") as folder:
        write_json(folder / "summary.json", summary(owners, outcomes))


def validate_split(
    validation: "Validation",
    checks: Checks,
    split: str,
    file: Path,
    owners: Owners,
    tokenizers: Mapping[str, Any],
    prompt: PromptSettings,
) -> None:
    """Validate a file's examples in chunks, and warn of those that will be cut."""
    unlimited = prompt.model_copy(update={"max_length": UNLIMITED})
    places, cut = [], 0
    for examples in example_chunks(file):
        uncut = {}
        for name, tokenizer in tokenizers.items():
            with about(f"models.{name}"):
                uncut[name] = encode(examples, tokenizer, unlimited)
        lengths = token_lengths(uncut.values())
        for same in zip(*uncut.values(), strict=True):
            cut += any(question.length > prompt.max_length for question in same)
        if validation.rows(split, flat_frame(split, examples, lengths, owners)):
            checks.read(split, examples, uncut)
        places.append(answer_places(examples))
    if not places:
        validation.rows(split, flat_frame(split, [], [], owners))
    validation.split(split, pd.concat([pd.DataFrame(), *places], ignore_index=True))
    if cut:
        log.warning(
            "data/prepare/%s.parquet: longer than prompt.max_length = %d, so that the start of the "
            "prompt is lost: %s of %s",
            *(split, prompt.max_length, f"{cut:,}", counted(owners.examples(split), "example")),
        )


def check_tokenizers(settings: Settings, tokenizers: Mapping[str, Any]) -> None:
    """Raise ConfigError if token ids of two tokenizers would be compared."""
    for name, model in settings.models.items():
        own = settings.lineage.root(name)
        for term_name, term in (model.learn or {}).items():
            if term.signal is None:
                continue
            if not term.same_tokens and term.signal in settings.lineage.stored:
                continue
            other = settings.lineage.root(settings.lineage.read_with(term.signal))
            if vocabulary_digest(tokenizers[own]) != vocabulary_digest(tokenizers[other]):
                raise ConfigError(
                    f"params.yaml: models.{name}.learn.{term_name}.from: signals.{term.signal} "
                    f"uses {other}'s tokenizer, but {name} has {own}'s; learn from a stored signal "
                    "of choices, whose texts mean the same to both, or by alm from a stored signal "
                    "of tokens"
                )


def check_templates(prompt: PromptSettings, tokenizers: Mapping[str, Any]) -> None:
    """Raise ConfigError for a model that is prompted in its chat template but has none."""
    for name, tokenizer in tokenizers.items():
        if prompt.format == "chat" and not tokenizer.chat_template:
            raise ConfigError(
                f"params.yaml: prompt.format: chat: models.{name} has no chat template; name one "
                f"as models.{name}.init.chat_template, or set the format to cloze or letter"
            )


def token_lengths(uncut: Iterable[Sequence[Question]]) -> list[tuple[int, int]]:
    """Count the tokens of prompt and longest response, by the tokenizer that makes the most.

    `uncut` are the same questions, as encoded with each tokenizer.
    """
    return [
        (
            max(len(q.prompt) for q in same),
            max((len(r) for q in same for r in q.responses), default=0),
        )
        for same in zip(*uncut, strict=True)
    ]


def report(outcomes: dict[str, dict[str, Any]], docs: Path) -> None:
    """Log the warnings; raise DataValidationError naming all failed expectations and their rows."""
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
            f"{counted(len(failures), 'expectation')} failed; correct the data, or the params.yaml "
            f"setting in parentheses (all results: {docs}):\n  {listed}"
        )


def _seen(outcome: dict[str, Any]) -> str:
    """Say what was seen and which setting of params.yaml governs it."""
    if "observed" in outcome:
        return f"observed {outcome['observed']} ({outcome['setting']})"
    more = " …" if outcome["unexpected"] > len(outcome["ids"]) else ""
    ids = ", ".join(map(str, outcome["ids"]))
    return f"{counted(outcome['unexpected'], 'row')}: {ids}{more} ({outcome['setting']})"


def summary(owners: Owners, outcomes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        split: {
            "examples": owners.examples(split),
            "groups": len(owners.sets["group"][split]),
            "expectations": expectations,
        }
        for split, expectations in outcomes.items()
    }


if __name__ == "__main__":
    run_stage(main, "validate")
