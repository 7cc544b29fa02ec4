"""Have a model write questions like those of a data set, for teachers to label.

Reads   data/fetch/LIKE.EXT, data/model/BY/, as write.NAME of params.yaml says
Writes  data/write/NAME/questions.jsonl, data/write/NAME/summary.json
Run as  python -m tasks.write NAME   (normally through `dvc repro write-NAME`)

Only training questions are shown to it. What it writes goes through `prepare` as unlabelled
questions do: nothing is kept that a test set asks.
"""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from heapq import nsmallest
from pathlib import Path
from typing import Any

from firstkd.data.examples import normalise, unit_hash
from firstkd.data.readers import read as read_dataset
from firstkd.data.tokenising import starting_ids
from firstkd.data.written import BORDER, Asked, WriteSettings, drafts, shown_questions
from firstkd.errors import ConfigError, DataValidationError
from firstkd.files import atomic_folder, write_json
from firstkd.models.folders import load_model, load_tokenizer
from firstkd.open_text.decoding import Draw, decode
from firstkd.reproducibility import deterministic
from firstkd.settings import Settings, load_settings
from tasks.layout import model_folder, written_folder
from tasks.prepare import assign, fetched
from tasks.stage import run_stage

log = logging.getLogger(__name__)

SHOWN = 4096
"""Questions that are drawn from, at most: those with the smallest hashes."""


def main(root: Path, name: str) -> None:
    settings = load_settings(root / "params.yaml")
    if name not in settings.write:
        raise ConfigError(f"there is no write.{name}; there are {', '.join(settings.write)}")
    deterministic(settings.runtime.seed, settings.runtime.threads)
    write = settings.write[name]
    shown = training_questions(root, settings, write)
    if len(shown) < write.shots:
        raise DataValidationError(
            f"params.yaml: write.{name}.shots: {write.shots}, but {write.like} has {len(shown)} "
            "training questions with choices in one paragraph; lower it, or name another data set"
        )
    found = written(root, settings, write, shown)
    questions, left_out = sifted(found, shown)
    if not questions:
        raise DataValidationError(
            f"params.yaml: write.{name}.by: {write.by} wrote no new question in {len(found)} draws "
            f"({', '.join(f'{reason}: {count}' for reason, count in left_out.items())}); name a "
            "larger model, or give it more shots or max_new_tokens"
        )
    log.info("kept %d of %d written questions; left out: %s", len(questions), len(found), left_out)
    with atomic_folder(written_folder(root, name)) as folder:
        lines = [
            json.dumps({"question": q, "choices": c}, ensure_ascii=False) for q, c in questions
        ]
        text = "".join(f"{line}\n" for line in lines)
        (folder / "questions.jsonl").write_text(text, encoding="utf-8")
        summary = {"draws": len(found), "kept": len(questions), "left_out": dict(left_out)}
        write_json(folder / "summary.json", summary)


def training_questions(root: Path, settings: Settings, write: WriteSettings) -> list[Asked]:
    """Return what the model may be shown: nothing of a calibration or test split."""
    dataset = settings.fetch.datasets[write.like]
    examples = read_dataset(fetched(root / "data/fetch", write.like), dataset, write.like)
    placed = (assign(example, dataset, settings.prepare.fractions) for example in examples)
    train = (example for example in placed if example.split in ("train", "unlabelled"))
    return shown_questions(nsmallest(SHOWN, train, key=lambda example: unit_hash(example.id)))


def written(
    root: Path, settings: Settings, write: WriteSettings, shown: Sequence[Asked]
) -> list[Asked | None]:
    """Return the question of each draw, None where there is none."""
    folder, seed = model_folder(root, write.by), settings.runtime.seed
    tokenizer: Any = load_tokenizer(folder)
    asked = [*drafts(shown, write, seed)]
    start = starting_ids(tokenizer)
    prompts = tokenizer(
        [draft.prompt for draft in asked], add_special_tokens=False, split_special_tokens=True
    )["input_ids"]
    draws = [
        Draw([*start, *ids], write.temperature, number, seed) for number, ids in enumerate(prompts)
    ]
    model = load_model(folder, settings.capture.precision)
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    border = BORDER if write.task == "new" else "\n"
    stop = {i for i, text in enumerate(texts) if border in text} | {tokenizer.eos_token_id}
    found = decode(
        *(model, draws, stop, write.max_new_tokens),
        *(settings.capture.micro_batch_size, settings.capture.micro_batch_tokens, "write"),
    )
    ids = (text.ids for text in found)
    said = (tokenizer.decode(each, skip_special_tokens=True) for each in ids)
    return [draft.read(text) for draft, text in zip(asked, said, strict=True)]


def sifted(
    found: Sequence[Asked | None], shown: Sequence[Asked]
) -> tuple[list[Asked], Counter[str]]:
    """Return the questions that are new, in the order of their draws, and why others are not."""
    kept: list[Asked] = []
    known = {normalise(asked.question) for asked in shown}
    written, left_out = set[str](), Counter[str]()
    for asked in found:
        key = normalise(asked.question) if asked else ""
        if asked is None:
            left_out["no_question"] += 1
        elif key in known:
            left_out["copied"] += 1
        elif key in written:
            left_out["written_twice"] += 1
        else:
            written.add(key)
            kept.append(asked)
    return kept, left_out


if __name__ == "__main__":
    run_stage(main, "write", "name")
