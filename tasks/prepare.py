"""Bring all examples into one schema and split them by hash of their group or id.

Reads   data/fetch/
Writes  data/prepare/{train,calibration,test}.parquet, data/prepare/ood_NAME.parquet for each
        out-of-domain data set, data/prepare/unlabelled.parquet if a data set has that role,
        data/prepare/summary.json (counts, and what was dropped)
Run as  python -m tasks.prepare   (normally through `dvc repro prepare`)

No question and no group (a passage that questions share) is in two splits: a test set keeps what
it shares with another split, and calibration keeps what it shares with train. Only train and the
unlabelled questions, which are learned from together, may share a passage. The same question with
other choices may occur within a split.
"""

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from firstkd.data.examples import (
    UNLABELLED,
    Example,
    normalise,
    side_of,
    split_by_hash,
    unit_hash,
    write_examples,
)
from firstkd.data.readers import read
from firstkd.data.settings import DatasetSource, Fractions, PrepareSettings
from firstkd.errors import ArtifactError
from firstkd.files import atomic_folder, write_json
from firstkd.settings import load_settings
from tasks.stage import run_stage

log = logging.getLogger(__name__)

SPLITS = ("train", "calibration", "test")
LARGE_GROUP = 0.5  # of a data set: more is hardly a passage, and leaves a split empty

Dropped = dict[str, Any]
Splits = dict[str, list[Example]]


def main(root: Path = Path(".")) -> None:
    settings = load_settings(root / "params.yaml")
    datasets = settings.fetch.datasets
    skipped: dict[str, Counter[str]] = {name: Counter() for name in datasets}
    examples = [
        assign(example, datasets[name], settings.prepare.fractions)
        for name in datasets
        for example in read_dataset(root / "data/fetch", name, datasets[name], skipped[name])
    ]
    splits, dropped = divide(examples, settings.prepare)
    dropped["skipped"] = {name: counts for name, counts in skipped.items() if counts}
    for name, dataset in datasets.items():
        if dataset.role == "out_of_domain":
            splits.setdefault(out_of_domain(name), [])
        elif dataset.role == UNLABELLED:
            splits.setdefault(UNLABELLED, [])
    with atomic_folder(root / "data/prepare") as folder:
        for split, kept in splits.items():
            write_examples(folder / f"{split}.parquet", kept)
        write_json(folder / "summary.json", {"splits": _counts(splits), "dropped": dropped})


def read_dataset(
    folder: Path, name: str, dataset: DatasetSource, skipped: Counter[str]
) -> list[Example]:
    file = next(folder.glob(f"{name}.*"), None)
    if file is None:
        raise ArtifactError(f"{folder}/{name}.* is missing; run the stage fetch")
    log.info("reading %s", file)
    examples = read(file, dataset, name, skipped)
    groups = Counter(example.group for example in examples if example.group)
    for group, size in groups.most_common(1):
        if dataset.role in ("split", "train") and size > LARGE_GROUP * len(examples):
            log.warning(
                "%s: %s of %s examples are one group, %s, and go to one split; if it is not a "
                "passage that they share, set fetch.datasets.%s.columns.group",
                *(file, f"{size:,}", f"{len(examples):,}", group, name),
            )
    return examples


def out_of_domain(name: str) -> str:
    """Return the name of the split that an out-of-domain data set is."""
    return f"ood_{name}"


def assign(example: Example, dataset: DatasetSource, fractions: Fractions) -> Example:
    """Give an example the split that the role of its data set and a hash decide.

    The hash is that of the example's group, so that a passage is in one split, or of its id.
    """
    train, calibration = ("train", fractions.train), ("calibration", fractions.calibration)
    match dataset.role:
        case "split":
            shares = [train, calibration, ("test", fractions.test)]
        case "train":
            shares = [train, calibration]
        case "test":
            shares = [("test", 1.0)]
        case "out_of_domain":
            shares = [(out_of_domain(example.source), 1.0)]
        case "unlabelled":
            shares = [(UNLABELLED, 1.0)]
    return replace(example, split=split_by_hash(example.group or example.id, shares))


def divide(examples: Iterable[Example], settings: PrepareSettings) -> tuple[Splits, Dropped]:
    """Drop what is empty, a duplicate, in two splits or over a limit; sort by hash.

    Order within a split is that of the ids' hashes: shuffled, yet the same every time, so that
    the start of a file is a fair sample of it.
    """
    splits: Splits = {split: [] for split in SPLITS}
    reasons = ("empty_response", "duplicate", "in_another_split", "group_in_another_split")
    dropped: Dropped = {reason: [] for reason in reasons}
    seen: dict[str, str] = {}  # question -> the split that has it
    groups: dict[str, str] = {}  # group -> the split that has it, train for unlabelled
    kept: dict[tuple[str, ...], str] = {}  # question and choices -> the id that has them
    for example in sorted(examples, key=_precedence):
        question = normalise(example.asked)
        content = (question, *map(normalise, example.choices or ()))
        group, side = example.group, side_of(example.split)
        if not example.response and example.split != UNLABELLED:
            dropped["empty_response"].append(example.id)
        elif seen.get(question, example.split) != example.split:
            dropped["in_another_split"].append({"id": example.id, "kept": seen[question]})
        elif content in kept:
            dropped["duplicate"].append({"id": example.id, "kept": kept[content]})
        elif group and groups.get(group, side) != side:
            dropped["group_in_another_split"].append({"id": example.id, "kept": groups[group]})
        else:
            seen[question], kept[content] = example.split, example.id
            if group:
                groups[group] = side
            splits.setdefault(example.split, []).append(example)
    for reason in reasons:
        if dropped[reason]:
            log.info("dropped as %s: %s examples", reason, f"{len(dropped[reason]):,}")
    limits = settings.max_examples
    dropped["over_max_examples"] = {}
    for name, split in splits.items():
        split.sort(key=lambda example: (unit_hash(example.id), example.id))
        limit = getattr(limits, name, limits.out_of_domain)
        dropped["over_max_examples"][name] = len(split) - len(split[:limit])
        splits[name] = split[:limit]
    return splits, dropped


def _precedence(example: Example) -> int:
    """First come the tests, whose questions must not be learned from; stable, so files' order."""
    order = {"test": 0, "calibration": 2, "train": 3, UNLABELLED: 4}
    return order.get(example.split, 1)


def _counts(splits: Splits) -> dict[str, Any]:
    return {
        split: {
            "examples": len(examples),
            "sources": Counter(example.source for example in examples),
        }
        for split, examples in splits.items()
    }


if __name__ == "__main__":
    run_stage(main, "prepare")
