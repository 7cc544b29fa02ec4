"""The one schema of all examples, their parquet files, and how ids decide their splits."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from firstkd.errors import ArtifactError
from firstkd.files import atomic_file

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("response", pa.string(), nullable=False),
        pa.field("choices", pa.list_(pa.string())),
        pa.field("answer_index", pa.int32()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("group", pa.string()),
        pa.field("history", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        pa.field("context", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation, before its last question."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One question with its answer; the fields are the columns of the parquet files."""

    id: str
    """`SOURCE/ID`, with the author's id if there is one, else a hash of the content."""
    prompt: str
    """The question; if it is about a passage, the passage comes first, on separate lines."""
    response: str
    """The right answer's text; empty if the question is unlabelled."""
    choices: tuple[str, ...] | None
    """None for open text."""
    answer_index: int | None
    """None for open text and for unlabelled questions."""
    source: str
    """Name of the data set in params.yaml."""
    split: str = ""
    """train, calibration, test, ood_SOURCE or unlabelled; empty until `prepare` decides."""
    group: str | None = None
    """The passage or conversation that several questions share, which must not straddle splits."""
    history: tuple[Turn, ...] | None = None
    """The turns before the prompt; None if there are none."""
    context: str | None = None
    """What a signal with a view shows to its model; nothing else reads it (`PromptView`)."""

    @property
    def asked(self) -> str:
        """Everything that the answer depends on: the earlier turns, then the prompt."""
        return "\n".join([*(turn.content for turn in self.history or ()), self.prompt])


CHUNK = 2**15
"""Examples held as Python objects, or written as a row group of a file, at a time."""


def chunks(examples: Iterable[Example], size: int | None = None) -> Iterator[list[Example]]:
    """Yield lists of `size` examples, CHUNK by default; the last has what remains."""
    remaining = iter(examples)
    while chunk := [*islice(remaining, size or CHUNK)]:
        yield chunk


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """Write parquet; the same examples give the same bytes."""
    rows = ([*map(asdict, chunk)] for chunk in chunks(examples))
    write_tables(path, (pa.Table.from_pylist(each, SCHEMA) for each in rows))


def write_tables(
    path: Path, tables: Iterable[pa.Table], schema: pa.Schema = SCHEMA, compression: str = "zstd"
) -> None:
    """Write tables to one parquet file in row groups of CHUNK, however the tables are cut."""
    waiting = schema.empty_table()
    with (
        atomic_file(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression=compression) as file,
    ):
        for table in tables:
            waiting = pa.concat_tables([waiting, table])
            while len(waiting) >= CHUNK:
                file.write_table(waiting[:CHUNK].combine_chunks())
                waiting = waiting[CHUNK:]
        file.write_table(waiting.combine_chunks())


def example_chunks(path: Path) -> Iterator[list[Example]]:
    """Yield a file's examples, CHUNK at a time; raises ArtifactError unless it has the schema."""
    try:
        with pq.ParquetFile(path) as file:
            if not file.schema_arrow.equals(SCHEMA):
                raise ArtifactError(
                    f"{path}: wrong schema; found {_fields(file.schema_arrow)}, "
                    f"expected {_fields(SCHEMA)}; run the prepare stage again"
                )
            for batch in file.iter_batches(CHUNK):
                yield examples_in(batch)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; run the prepare stage") from error
    except pa.ArrowInvalid as error:
        raise ArtifactError(
            f"{path}: not a parquet file ({error}); run the prepare stage again"
        ) from error


def read_examples(path: Path) -> list[Example]:
    """Read a file of examples; raises ArtifactError as `example_chunks` does."""
    return [example for chunk in example_chunks(path) for example in chunk]


def examples_in(table: pa.Table | pa.RecordBatch) -> list[Example]:
    """Return the examples of a table with the schema."""
    return [_from_row(row) for row in table.to_pylist()]


def _from_row(row: dict[str, Any]) -> Example:
    choices, history = row["choices"], row["history"]
    turns = history and tuple(Turn(**turn) for turn in history)
    return Example(**{**row, "choices": choices and tuple(choices), "history": turns})


def read_all(paths: Iterable[Path]) -> list[Example]:
    """Read several files of examples, one after the other."""
    return [example for path in paths for example in read_examples(path)]


def right_choices(examples: Sequence[Example], num_choices: int) -> NDArray[np.bool_]:
    """Return [E, C], True at each choice whose text is the right answer's.

    Some published questions list a choice twice; either one counts as the right answer.
    """
    is_right = np.zeros((len(examples), num_choices), dtype=bool)
    for row, example in zip(is_right, examples, strict=True):
        choices = example.choices or ()
        row[: len(choices)] = [choice == choices[example.answer_index or 0] for choice in choices]
    return is_right


def common_choices(examples: Iterable[Example]) -> list[str] | None:
    """Return the choices that all questions share, in any order, such as yes and no.

    None if they differ. Open text, which has none, does not count.
    """
    listed = (example.choices for example in examples if example.choices is not None)
    if (first := next(listed, None)) is None:
        return None
    same = frozenset(first)
    return [*first] if all(frozenset(choices) == same for choices in listed) else None


def example_key(example: Example) -> int:
    """Return 64 bits that identify an example by its question and its possible answers.

    They do not depend on the tokenizer or on where the example is stored.
    """
    content: list[object] = [example.prompt, example.choices, example.response]
    content += [asdict(turn) for turn in example.history or ()]
    digest = hashlib.sha256(json.dumps(content).encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def fold_of(key: int, folds: int) -> int:
    """Return the fold of the example with this key: equal questions share one."""
    return key % folds


def _fields(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


def unit_hash(text: str) -> float:
    """Return a number in [0, 1) that depends on `text` alone and is uniform over texts."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48  # 48 bits: exact in a float, never rounded up to 1


UNLABELLED = "unlabelled"
"""The split of questions without answers; models learn from it as they do from train."""


def side_of(split: str) -> str:
    """Return the split itself, but train for unlabelled: between these two nothing can leak."""
    return "train" if split == UNLABELLED else split


def split_by_hash(identity: str, shares: Sequence[tuple[str, float]]) -> str:
    """Return the split for an example's id or group; `shares` lists (split, share) in fixed order.

    Each example is decided independently, so adding or removing data does not move any other.
    """
    position = unit_hash(identity) * sum(share for _, share in shares)
    for split, share in shares:
        position -= share
        if position < 0:
            return split
    return shares[-1][0]


# Leaves out prose punctuation, but not signs that change the meaning of a formula.
WORDS_AND_SIGNS = re.compile(r"\w+|[^\w\s\"'‘’“”„`.,;:?!()…]")


def normalise(text: str) -> str:
    """Return what makes two questions the same: words and signs, not case, spacing or commas.

    If nothing would be left, return the text itself.
    """
    words = WORDS_AND_SIGNS.findall(unicodedata.normalize("NFKC", text).casefold())
    return " ".join(words) or text.strip()


def content_id(source: str, prompt: str, choices: Sequence[str] | None) -> str:
    """Return an id derived from the question itself, for when its author gave it none."""
    content = [normalise(prompt), choices and [normalise(choice) for choice in choices]]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return f"{source}/{digest[:16]}"
