"""All examples, kept on disk while they are divided into splits.

DuckDB stores the texts and sorts more than fit in memory; 28 bytes of each stay in memory.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from firstkd.data.examples import CHUNK, SCHEMA, Example, chunks, normalise, unit_hash
from firstkd.data.keys import keys_of

Facts = NDArray[np.void]
FACTS = np.dtype(
    [
        *(("split", np.int16), ("answered", bool)),
        *(("question", np.int64), ("content", np.int64)),
        *(("group", np.int64), ("grouped", bool)),
    ]
)
"""Facts about an example: `split` is an index into `Pool.splits`; `question`, `content` (question
and choices) and `group` are keys of texts."""

STORED = SCHEMA.append(pa.field("number", pa.int64())).append(pa.field("place", pa.float64()))
CONFIG: dict[str, Any] = {"memory_limit": "600MB", "preserve_insertion_order": False}


class Pool:
    """Examples, numbered in the order they are added."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._database = duckdb.connect(str(file), config=CONFIG)
        self._database.from_arrow(STORED.empty_table()).create("pool")
        self.splits: list[str] = []
        """Names, in order of first appearance."""
        self._facts: list[Facts] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._database.close()
        self._file.unlink()

    @property
    def facts(self) -> Facts:
        """FACTS about each example."""
        return np.concatenate([np.empty(0, FACTS), *self._facts])

    def add(self, examples: Iterable[Example]) -> None:
        size = sum(map(len, self._facts))
        for chunk in chunks(examples):
            rows = [
                {**asdict(example), "number": number, "place": unit_hash(example.id)}
                for number, example in enumerate(chunk, size)
            ]
            self._database.from_arrow(pa.Table.from_pylist(rows, STORED)).insert_into("pool")
            self._facts.append(self._facts_of(chunk))
            size += len(chunk)

    def _facts_of(self, examples: Sequence[Example]) -> Facts:
        facts = np.empty(len(examples), FACTS)
        self.splits += dict.fromkeys(e.split for e in examples if e.split not in self.splits)
        asked = [normalise(example.asked) for example in examples]
        choices = [map(normalise, example.choices or ()) for example in examples]
        facts["split"] = [self.splits.index(example.split) for example in examples]
        facts["answered"] = [bool(example.response) for example in examples]
        facts["question"] = keys_of(asked)
        facts["content"] = keys_of(
            map("\0".join, ((q, *c) for q, c in zip(asked, choices, strict=True)))
        )
        facts["group"] = keys_of(example.group or "" for example in examples)
        facts["grouped"] = [example.group is not None for example in examples]
        return facts

    def largest_groups(self) -> dict[str, tuple[str, int, int]]:
        """Return, for each source with groups, the largest one, its size and the source's."""
        found = self._database.sql(
            'SELECT source, arg_max("group", size), max(size), any_value(total) FROM ('
            'SELECT source, "group", count(*) AS size, sum(count(*)) OVER (PARTITION BY source) '
            'AS total FROM pool GROUP BY source, "group") WHERE "group" IS NOT NULL GROUP BY source'
        )
        return {
            source: (group, size, int(total)) for source, group, size, total in found.fetchall()
        }

    def ids(self, numbers: Collection[int]) -> dict[int, str]:
        """Return the ids of the examples with these numbers, by number."""
        found = self._of(numbers, "SELECT number, id FROM pool SEMI JOIN wanted USING (number)")
        return dict(found.fetchall())

    def remove(self, numbers: Collection[int]) -> None:
        self._of(numbers, "DELETE FROM pool WHERE number IN (FROM wanted)")

    def _of(self, numbers: Collection[int], query: str) -> Any:
        wanted = pa.table({"number": pa.array(list(numbers), pa.int64())})
        self._database.register("wanted", wanted)
        return self._database.execute(query)

    def count(self, split: str) -> int:
        [(count,)] = self._database.execute(
            "SELECT count(*) FROM pool WHERE split = ?", [split]
        ).fetchall()
        return int(count)

    def tables(self, split: str, limit: int | None) -> Iterator[pa.Table]:
        """Yield a split's examples in the order of their ids' hashes, at most `limit` of them."""
        columns = ", ".join(f'"{name}"' for name in SCHEMA.names)
        rows = self._database.sql(
            f"SELECT {columns} FROM pool WHERE split = ? ORDER BY place, id, number LIMIT ?",
            params=[split, limit],
        )
        for batch in rows.to_arrow_reader(CHUNK):
            yield pa.Table.from_batches([batch]).cast(SCHEMA)
