"""Have a model write questions like those of a data set, for teachers to label.

Reads   data/fetch/, data/model/BY/, as write.NAME of params.yaml says
Writes  data/write/NAME/questions.jsonl, data/write/NAME/summary.json
Run as  python -m tasks.write NAME   (normally through `dvc repro write-NAME`)

The model sees only training questions: as in `prepare`, what a calibration or test split keeps is
left out. An interrupted run leaves what it has written in data/.write/, and the next one resumes
from there.
"""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from firstkd.data.division import divide
from firstkd.data.examples import Example, examples_in, normalise
from firstkd.data.pool import Pool
from firstkd.data.prompts import encode
from firstkd.data.tokenising import starting_ids
from firstkd.data.written import Asked, Draft, WriteSettings, drafts, shown_questions
from firstkd.errors import ConfigError, DataValidationError
from firstkd.files import atomic_folder, read_json, sha256_of, write_json
from firstkd.models.folders import load_tokenizer, precision_here, read_config
from firstkd.open_text.decoding import Draw, decode
from firstkd.reproducibility import deterministic
from firstkd.settings import Settings, load_settings
from firstkd.train.distributed import Ranks
from tasks.layout import model_folder, written_folder
from tasks.partial import partial_folder
from tasks.prepare import fill
from tasks.stage import run_stage
from tasks.viewing import UNLIMITED

log = logging.getLogger(__name__)

SHOWN = 4096
"""Questions to draw the shown ones from: those whose ids have the smallest hashes."""
PART = 512
"""The most texts that an interrupted run can lose."""

Found = tuple[Asked | None, str]
"""A question, or None and the reason why it is left out."""


def main(root: Path, name: str) -> None:
    settings = load_settings(root / "params.yaml")
    if name not in settings.write:
        raise ConfigError(f"there is no write.{name}; there are {', '.join(settings.write)}")
    deterministic(settings.runtime.seed, settings.runtime.threads)
    write = settings.write[name]
    shown = training_questions(root, settings, write)
    if len(shown) < write.shots:
        raise DataValidationError(
            f"params.yaml: write.{name}.shots: {write.shots}, but {write.like} has only "
            f"{len(shown)} one-paragraph training questions with choices; lower it, or name "
            "another data set"
        )
    tokenizer: Any = load_tokenizer(model_folder(root, write.by))
    asked = [*drafts(shown, write, settings.runtime.seed)]
    check_lengths(asked, name, write, tokenizer, read_config(model_folder(root, write.by)))
    made_from = [
        *(write.model_dump(), asked, sha256_of(model_folder(root, write.by))),
        *(settings.runtime.model_dump(), settings.capture.model_dump()),
        precision_here(settings.capture.precision),
    ]
    partial = partial_folder(root / "data/.write", name, made_from, Ranks())
    partial.mkdir(parents=True, exist_ok=True)
    found = written(root, settings, name, asked, partial, tokenizer)
    questions, left_out = sifted(found, shown, settings, tokenizer)
    reasons = ", ".join(f"{reason}: {count}" for reason, count in left_out.items())
    if not questions:
        raise DataValidationError(
            f"params.yaml: write.{name}.by: {write.by} wrote no new question in {len(found)} texts "
            f"({reasons}); name a larger model, or raise shots or max_new_tokens"
        )
    log.info("kept %d of %d written questions; left out: %s", len(questions), len(found), reasons)
    with atomic_folder(written_folder(root, name)) as folder:
        lines = [json.dumps(each._asdict(), ensure_ascii=False) for each in questions]
        text = "".join(f"{line}\n" for line in lines)
        (folder / "questions.jsonl").write_text(text, encoding="utf-8")
        summary = {"draws": len(found), "kept": len(questions), "left_out": dict(left_out)}
        write_json(folder / "summary.json", summary)
    shutil.rmtree(partial)


def check_lengths(
    asked: Sequence[Draft], name: str, write: WriteSettings, tokenizer: Any, config: Any
) -> None:
    """Raise ConfigError if the model cannot read what it is shown and write its text."""
    longest = len(starting_ids(tokenizer)) + max(map(len, _encoded(asked, tokenizer)))
    longest += write.max_new_tokens
    most = getattr(config, "max_position_embeddings", None)
    if most and longest > most:
        raise ConfigError(
            f"params.yaml: write.{name}: shots and max_new_tokens make texts of up to {longest} "
            f"tokens, but {write.by} reads at most {most}; lower either"
        )


def _encoded(asked: Sequence[Draft], tokenizer: Any) -> list[list[int]]:
    prompts = [draft.prompt for draft in asked]
    found = tokenizer(prompts, add_special_tokens=False, split_special_tokens=True)
    ids: list[list[int]] = found["input_ids"]
    return ids


def training_questions(root: Path, settings: Settings, write: WriteSettings) -> list[Asked]:
    """Return the questions the model may be shown: none that a calibration or test split keeps."""
    (place := root / "data/.write").mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=place) as folder, Pool(Path(folder) / "pool.duckdb") as pool:
        datasets = settings.fetch.datasets
        fill(pool, root, settings, datasets, {name: Counter() for name in datasets})
        divide(pool)
        examples = [
            example
            for split in ("train", "unlabelled")
            for example in islice(_of(pool, split, write.like), SHOWN)
        ]
    return shown_questions(examples[:SHOWN])


def _of(pool: Pool, split: str, source: str) -> Iterator[Example]:
    for table in pool.tables(split, None):
        yield from (example for example in examples_in(table) if example.source == source)


def written(
    root: Path, settings: Settings, name: str, asked: Sequence[Draft], partial: Path, tokenizer: Any
) -> list[Found]:
    """Return the question written in each draw; `partial` keeps the texts so far."""
    files = [partial / f"{start:09}.json" for start in range(0, len(asked), PART)]
    if missing := [number for number, file in enumerate(files) if not file.exists()]:
        folder, precision = model_folder(root, settings.write[name].by), settings.capture.precision
        with settings.machine.placement.running(folder, precision, Ranks()) as model:
            for number in missing:
                first = number * PART
                part = asked[first : first + PART]
                texts = _texts(settings, name, part, first, model, tokenizer)
                write_json(files[number], texts)
    texts = [text for file in files for text in read_json(file)]
    return [_read(draft, text) for draft, text in zip(asked, texts, strict=True)]


def _texts(
    settings: Settings, name: str, asked: Sequence[Draft], first: int, model: Any, tokenizer: Any
) -> list[str | None]:
    """Return the texts that the model writes, None if cut off; draws are numbered from `first`."""
    write, start = settings.write[name], starting_ids(tokenizer)
    prompts = _encoded(asked, tokenizer)
    draws = [
        Draw([*start, *ids], write.temperature, number, settings.runtime.seed)
        for number, ids in enumerate(prompts, first)
    ]
    tokens = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    stop = {i for i, text in enumerate(tokens) if asked[0].border in text}
    stop |= {tokenizer.eos_token_id} - {None}
    found = decode(
        *(model, draws, stop, write.max_new_tokens),
        *(settings.capture.micro_batch_size, settings.capture.micro_batch_tokens, "write"),
    )
    texts = [tokenizer.decode(each.ids, skip_special_tokens=True) for each in found]
    return [
        text if each.ids[-1] in stop or draft.is_ended(text) else None
        for draft, each, text in zip(asked, found, texts, strict=True)
    ]


def _read(draft: Draft, text: str | None) -> Found:
    if text is None:
        return None, "cut_off"
    asked = draft.read(text)
    return asked, "" if asked else "no_question"


def sifted(
    found: Sequence[Found], shown: Sequence[Asked], settings: Settings, tokenizer: Any
) -> tuple[list[Asked], Counter[str]]:
    """Return the new questions that can be learned from, in order, and why others were left out.

    A question with more choices than any shown one, or more tokens than `validate` allows, would
    stop the pipeline.
    """
    kept: list[Asked] = []
    known = {normalise(asked.question) for asked in shown}
    most = max(len(asked.choices) for asked in shown)
    new, left_out = set[str](), Counter[str]()
    for asked, why in found:
        if asked is not None:
            key = normalise(asked.question)
            if key in known:
                why = "copied"
            elif key in new:
                why = "written_twice"
            elif len(asked.choices) > most or _is_long(asked, settings, tokenizer):
                why = "too_long"
            else:
                new.add(key)
                kept.append(asked)
        if why:
            left_out[why] += 1
    return kept, left_out


def _is_long(asked: Asked, settings: Settings, tokenizer: Any) -> bool:
    example = Example("", asked.question, "", asked.choices, None, "")
    prompt = settings.prompt.model_copy(update={"max_length": UNLIMITED})
    [question] = encode([example], tokenizer, prompt)
    responses = max(map(len, question.responses))
    return (
        len(question.prompt) > settings.validate_.max_prompt_tokens
        or responses > settings.validate_.max_response_tokens
        or len(question.prompt) + responses > settings.prompt.max_length
    )


if __name__ == "__main__":
    run_stage(main, "write", "name")
