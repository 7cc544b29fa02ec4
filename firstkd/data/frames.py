"""Examples as flat frames of scalars, ready for validation.

Great Expectations hashes the whole frame at each validation and is quadratic on lists (200,000
rows with one list column: 3.6 s a call, 0.08 s without). So facts about choices or other examples
become separate columns, and many examples are spread over several frames.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from firstkd.data.examples import SCHEMA, Example, normalise, side_of
from firstkd.data.keys import KeySet, keys_of

FLAT = [name for name in SCHEMA.names if name not in ("choices", "history")]
OF_CHOICES = ["num_choices", "blank_choices", "distinct_choices", "chosen"]
OF_TOKENS = ["prompt_tokens", "response_tokens"]

SHARED: dict[str, Callable[[Example], str | None]] = {
    "id": lambda example: example.id,
    "question": lambda example: normalise(example.asked),
    "group": lambda example: example.group,
}
"""What two splits may not share; None if an example does not have it."""


@dataclass(frozen=True)
class Owners:
    """Which splits have an id, a question or a group, in 16 bytes for each."""

    sets: Mapping[str, Mapping[str, KeySet]]
    """By what is shared, then by split."""

    @classmethod
    def of(cls, splits: Mapping[str, Iterable[Sequence[Example]]]) -> "Owners":
        """Survey the splits, each as chunks of examples."""
        sets: dict[str, dict[str, KeySet]] = {name: {} for name in SHARED}
        for split, chunks in splits.items():
            keys = defaultdict(list)
            for examples in chunks:
                for name in SHARED:
                    keys[name].append(keys_of(_values(name, examples)))
            for name, found in sets.items():
                found[split] = KeySet.of(np.concatenate([np.empty(0, np.int64), *keys[name]]))
        return cls(sets)

    def examples(self, split: str) -> int:
        """Return how many examples a split has."""
        return int(self.sets["id"][split].counts.sum())

    def others(self, name: str, split: str, examples: Sequence[Example]) -> list[str | None]:
        """Return, for each example, the other splits with the same `name`, None if there are none.

        Train and the unlabelled questions are one side of the division: they may share a group, and
        a question with other choices.
        """
        side = str if name == "id" else side_of
        rows = [row for row, example in enumerate(examples) if SHARED[name](example) is not None]
        keys = keys_of(_values(name, examples))
        owners: dict[int, set[str]] = defaultdict(set)
        for other, found in self.sets[name].items():
            if side(other) != side(split):
                for place in found.count(keys).nonzero()[0].tolist():
                    owners[rows[place]].add(side(other))
        return [", ".join(sorted(owners[row])) or None for row in range(len(examples))]

    def rows_of_id(self, split: str, examples: Sequence[Example]) -> list[int]:
        """Return how many examples of the split have each example's id."""
        counts: list[int] = self.sets["id"][split].count(keys_of(_values("id", examples))).tolist()
        return counts


def _values(name: str, examples: Sequence[Example]) -> list[str]:
    return [value for example in examples if (value := SHARED[name](example)) is not None]


def flat_frame(
    split: str, examples: Sequence[Example], lengths: Sequence[tuple[int, int]], owners: Owners
) -> pd.DataFrame:
    """Return a frame of scalars; `lengths` are the token counts of prompt and response."""
    rows = [_scalars(example) for example in examples]
    frame = pd.DataFrame(rows, columns=[*FLAT, *OF_CHOICES])
    frame["rows_of_id"] = owners.rows_of_id(split, examples)
    for name in SHARED:
        frame[f"same_{name}_in"] = owners.others(name, split, examples)
    frame[OF_TOKENS] = pd.DataFrame(lengths, columns=OF_TOKENS, dtype=int)
    return frame


def _scalars(example: Example) -> dict[str, Any]:
    choices, answer = example.choices, example.answer_index
    row = {name: getattr(example, name) for name in FLAT}
    if choices is None:
        return {**row, "chosen": None if answer is None else ""}
    chosen = choices[answer] if answer is not None and 0 <= answer < len(choices) else ""
    return {
        **row,
        "num_choices": len(choices),
        "blank_choices": sum(not choice.strip() for choice in choices),
        "distinct_choices": len(set(choices)),
        "chosen": chosen,
    }


def answer_places(examples: Sequence[Example]) -> pd.DataFrame:
    """Return a column `answer_at_I` per position of a choice: 1 if the answer is there, else 0.

    It is null for a question without a choice at that position.
    """
    places = [
        {f"answer_at_{i}": example.answer_index == i for i in range(len(example.choices or ()))}
        for example in examples
    ]
    return pd.DataFrame(places, dtype=float)
