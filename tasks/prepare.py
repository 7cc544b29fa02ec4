"""Bring all examples into one schema and split them by the hash of their group or id.

Reads   data/fetch/, and data/write/ if models write questions
Writes  data/prepare/{train,calibration,test}.parquet, data/prepare/ood_NAME.parquet for each
        out-of-domain data set, data/prepare/unlabelled.parquet if a data set has that role or
        prepare.augment makes variants,
        data/prepare/summary.json (counts, and what was dropped)
Run as  python -m tasks.prepare   (normally through `dvc repro prepare`)

No question and no group (a passage that questions share) is in two splits: a test set keeps what
it shares with another split, and calibration keeps what it shares with train. Only train and the
unlabelled questions, which are learned from together, may share a passage. The same question with
other choices may occur within a split.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from firstkd.data.augmentation import AugmentSettings, variants
from firstkd.data.division import divide
from firstkd.data.examples import (
    UNLABELLED,
    Example,
    example_chunks,
    split_by_hash,
    write_examples,
    write_tables,
)
from firstkd.data.pool import Pool
from firstkd.data.readers import read
from firstkd.data.settings import Dataset, Fractions, SplitLimits
from firstkd.data.written import WRITTEN
from firstkd.errors import ArtifactError, DataValidationError
from firstkd.files import atomic_folder, write_json
from firstkd.settings import Settings, load_settings
from firstkd.words import counted
from tasks.layout import written_folder
from tasks.stage import run_stage

log = logging.getLogger(__name__)

SPLITS = ("train", "calibration", "test")
LARGE_GROUP = 0.5  # share of a data set: a larger one is hardly a passage, and empties a split


def main(root: Path = Path(".")) -> None:
    settings = load_settings(root / "params.yaml")
    datasets: dict[str, Dataset] = {
        **settings.fetch.datasets,
        **dict.fromkeys(settings.write, WRITTEN),
    }
    skipped: dict[str, Counter[str]] = {name: Counter() for name in datasets}
    with atomic_folder(root / "data/prepare") as folder:
        with Pool(folder / "pool.duckdb") as pool:
            fill(pool, root, settings, datasets, skipped)
            warn_of_large_groups(pool, root / "data/fetch", datasets)
            dropped = divide(pool)
            for reason, examples in dropped.items():
                if examples:
                    log.info("dropped as %s: %s", reason, counted(len(examples), "example"))
            splits, over = write_splits(
                pool, folder, expected(datasets), settings.prepare.max_examples
            )
        if settings.prepare.augment.is_asked_for:
            splits[UNLABELLED] = add_variants(folder, settings.prepare.augment)
        dropped["over_max_examples"] = over
        dropped["skipped"] = {name: counts for name, counts in skipped.items() if counts}
        write_json(folder / "summary.json", {"splits": splits, "dropped": dropped})


def fill(
    pool: Pool,
    root: Path,
    settings: Settings,
    datasets: Mapping[str, Dataset],
    skipped: Mapping[str, Counter[str]],
) -> None:
    """Add the examples of some data sets to a pool, each with its split."""
    for name, dataset in datasets.items():
        file = file_of(root, settings, name)
        log.info("reading %s", file)
        examples = read(file, dataset, name, skipped[name])
        pool.add(assign(example, dataset, settings.prepare.fractions) for example in examples)


def file_of(root: Path, settings: Settings, name: str) -> Path:
    """Return the file of a data set; raises ArtifactError if it is missing."""
    if name in settings.write:
        return written_folder(root, name) / "questions.jsonl"
    return fetched(root / "data/fetch", name)


def fetched(folder: Path, name: str) -> Path:
    file = next(folder.glob(f"{name}.*"), None)
    if file is None:
        raise ArtifactError(f"{folder}/{name}.* is missing; run the fetch stage")
    return file


def warn_of_large_groups(pool: Pool, folder: Path, datasets: Mapping[str, Dataset]) -> None:
    for name, (group, size, total) in sorted(pool.largest_groups().items()):
        if datasets[name].role in ("split", "train") and size > LARGE_GROUP * total:
            log.warning(
                "%s: %s of %s examples are one group, %s, and go to one split; unless it is a "
                "passage they share, set fetch.datasets.%s.columns.group",
                *(fetched(folder, name), f"{size:,}", f"{total:,}", group, name),
            )


def expected(datasets: Mapping[str, Dataset]) -> list[str]:
    """Return the splits that have a file, even an empty one."""
    roles = {name: dataset.role for name, dataset in datasets.items()}
    unlabelled = [UNLABELLED] if UNLABELLED in roles.values() else []
    elsewhere = [out_of_domain(name) for name, role in roles.items() if role == "out_of_domain"]
    return [*SPLITS, *elsewhere, *unlabelled]


def write_splits(
    pool: Pool, folder: Path, splits: list[str], limits: SplitLimits
) -> tuple[dict[str, Any], dict[str, int]]:
    """Write a file for each split; return the counts, and how many are over `max_examples`.

    Examples are ordered by the hash of their ids: shuffled, yet the same every time, so that the
    start of a file is a fair sample of it.
    """
    counts, over = {}, {}
    for split in splits:
        sources: Counter[str] = Counter()
        limit = getattr(limits, split, limits.out_of_domain)
        write_tables(folder / f"{split}.parquet", _counted(pool.tables(split, limit), sources))
        counts[split] = {"examples": sources.total(), "sources": sources}
        over[split] = pool.count(split) - sources.total()
    return counts, over


def add_variants(folder: Path, augment: AugmentSettings) -> dict[str, Any]:
    """Add variants of the train and unlabelled questions to the latter; return their counts.

    Raises DataValidationError if there are none.
    """
    target, made = folder / f"{UNLABELLED}.parquet", folder / "variants.parquet"
    unlabelled = [target] if target.exists() else []
    write_examples(made, _variants([folder / "train.parquet", *unlabelled], augment))
    count = sum(map(len, example_chunks(made)))
    if not count:
        raise DataValidationError(
            "params.yaml: prepare.augment: no question has variants: all have the same choices, "
            "or none; remove it"
        )
    write_examples(target, _all([*unlabelled, made]))
    made.unlink()
    log.info("made %s variants of questions for teachers to label", f"{count:,}")
    sources = Counter(example.source for example in _all([target]))
    return {"examples": sources.total(), "sources": sources, "variants": count}


def _all(files: Iterable[Path]) -> Iterator[Example]:
    return (example for file in files for part in example_chunks(file) for example in part)


def _variants(files: Iterable[Path], augment: AugmentSettings) -> Iterator[Example]:
    for file in files:
        for chunk in example_chunks(file):
            yield from variants(chunk, augment)


def _counted(tables: Iterable[pa.Table], sources: Counter[str]) -> Iterator[pa.Table]:
    for table in tables:
        sources.update(table["source"].to_pylist())
        yield table


def out_of_domain(name: str) -> str:
    """Return the name of an out-of-domain data set's split."""
    return f"ood_{name}"


def assign(example: Example, dataset: Dataset, fractions: Fractions) -> Example:
    """Assign an example to a split, by the role of its data set and a hash.

    The hash is of the example's group, so that a passage stays in one split, or else of its id.
    """
    train, calibration = ("train", fractions.train), ("calibration", fractions.calibration)
    match dataset.role:
        case "split":
            shares = [train, calibration, ("test", fractions.test)]
        case "train":
            shares = [train, calibration]
        case "calibration":
            shares = [("calibration", 1.0)]
        case "test":
            shares = [("test", 1.0)]
        case "out_of_domain":
            shares = [(out_of_domain(example.source), 1.0)]
        case "unlabelled":
            shares = [(UNLABELLED, 1.0)]
    return replace(example, split=split_by_hash(example.group or example.id, shares))


if __name__ == "__main__":
    run_stage(main, "prepare")
