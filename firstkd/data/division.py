"""Choose what a division into splits drops, so that nothing is both learned and tested.

A question is in one split, and so is a group; equal questions with equal choices are kept once.
"""

from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstkd.data.examples import CHUNK, UNLABELLED, side_of
from firstkd.data.pool import Facts, Pool

REASONS = ("empty_response", "duplicate", "in_another_split", "group_in_another_split")
NOBODY = -1

Dropped = dict[str, Any]


def divide(pool: Pool) -> Dropped:
    """Remove examples that are empty, duplicates or in two splits; return their ids by reason.

    `kept` is the id that a duplicate repeats, or the split that keeps the question or group.
    """
    drops = [*_drops(pool.facts, pool.splits)]
    repeated = [kept for reason, _, kept in drops if reason == "duplicate"]
    numbers = [number for _, number, _ in drops]
    ids = pool.ids({*numbers, *repeated})
    pool.remove(numbers)
    dropped: Dropped = {reason: [] for reason in REASONS}
    for reason, number, kept in drops:
        if reason == "empty_response":
            dropped[reason].append(ids[number])
        else:
            where = ids[kept] if reason == "duplicate" else pool.splits[kept]
            dropped[reason].append({"id": ids[number], "kept": where})
    return dropped


def _drops(facts: Facts, splits: list[str]) -> Iterator[tuple[str, int, int]]:
    """Yield the reason, the number, and that of the example or split that it gives way to."""
    sides = [
        splits.index(side) if (side := side_of(s)) in splits else i for i, s in enumerate(splits)
    ]
    question_split, group_side, content_owner = (
        array("q", [NOBODY]) * len(facts) for _ in range(3)
    )
    for number, split, answered, question, content, group in _in_order(facts, splits):
        if not answered and splits[split] != UNLABELLED:
            yield "empty_response", number, NOBODY
        elif question_split[question] not in (NOBODY, split):
            yield "in_another_split", number, question_split[question]
        elif content_owner[content] != NOBODY:
            yield "duplicate", number, content_owner[content]
        elif group != NOBODY and group_side[group] not in (NOBODY, sides[split]):
            yield "group_in_another_split", number, group_side[group]
        else:
            question_split[question], content_owner[content] = split, number
            if group != NOBODY:
                group_side[group] = sides[split]


def _in_order(facts: Facts, splits: list[str]) -> Iterator[tuple[int, ...]]:
    """Yield number, split, answered, question, content and group of each example, tests first.

    Equal texts have equal small numbers; an example without a group has NOBODY.
    """
    precedence = np.array([_precedence(split) for split in splits], np.int16)
    order = precedence[facts["split"]].argsort(kind="stable")
    group = np.where(facts["grouped"], _ranks(facts["group"]), NOBODY)
    columns = [facts["split"], facts["answered"], _ranks(facts["question"])]
    columns += [_ranks(facts["content"]), group]
    for start in range(0, len(order), CHUNK):
        part = order[start : start + CHUNK]
        yield from zip(part.tolist(), *(column[part].tolist() for column in columns), strict=True)


def _ranks(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.unique(keys, return_inverse=True)[1]


def _precedence(split: str) -> int:
    """Tests come first: their questions must not be learned from. Ties keep the files' order."""
    return {"test": 0, "calibration": 2, "train": 3, UNLABELLED: 4}.get(split, 1)
