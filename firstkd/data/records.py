"""Read files of records: JSON lines, a JSON list, a CSV or TSV table, or Parquet.

Any other file raises DataValidationError naming the file, the place in it and what to do.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from firstkd.errors import DataValidationError

Record = dict[str, Any]

TABLES = {".csv", ".tsv"}
SUFFIXES = {".jsonl", ".ndjson", ".json", ".parquet", *TABLES}
csv.field_size_limit(2**31 - 1)  # the default, 131,072 characters, is too small for many passages

DELIMITERS = ",;\t"
"""In locales with decimal commas, spreadsheets separate cells with semicolons."""


def read_records(path: Path) -> Iterator[tuple[str, Record]]:
    """Yield the place and the content of each record in a file.

    A place is `line 7`, `item 7` of a JSON list, or `row 7` of Parquet.
    """
    suffix = path.suffix.lower()
    if suffix in TABLES:
        return _rows(path)
    if suffix == ".parquet":
        return _parquet(path)
    with path.open("rb") as file:
        start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    return _json_list(path) if start.startswith(b"[") else _json_lines(path)


def _json_lines(path: Path) -> Iterator[tuple[str, Record]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                record = _parsed(line)
            except UnicodeDecodeError as error:
                raise _not_utf8(where, error) from error
            except (ValueError, RecursionError) as error:
                hint = "" if line.endswith(b"\n") else "; the file seems to be cut off here"
                if line.strip() == b"{":
                    hint = "; each object must be on one line, or in a list: [{…}, {…}]"
                raise _unreadable(where, f"not valid JSON ({error}){hint}") from error
            if not isinstance(record, dict):
                raise _unreadable(where, f"expected an object, found {type(record).__name__}")
            yield f"line {number}", record


def _json_list(path: Path) -> Iterator[tuple[str, Record]]:
    try:
        records = _parsed(path.read_bytes())
    except json.JSONDecodeError as error:
        where = f"{path}, line {error.lineno}"
        raise _unreadable(where, f"not valid JSON, perhaps cut off ({error.msg})") from error
    except UnicodeDecodeError as error:
        raise _not_utf8(str(path), error) from error
    except (ValueError, RecursionError) as error:
        raise _unreadable(str(path), f"not valid JSON ({error})") from error
    if not all(isinstance(record, dict) for record in records):
        raise _unreadable(str(path), "expected a list of objects")
    yield from ((f"item {number}", record) for number, record in enumerate(records, 1))


def _parsed(text: bytes) -> Any:
    """Parse JSON; raises ValueError for a repeated key, since either value might be meant."""

    def once(pairs: list[tuple[str, Any]]) -> Record:
        if twice := _repeated([key for key, _ in pairs]):
            raise ValueError(f"the key {twice!r} occurs twice in one object")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=once)


def _repeated(names: Sequence[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _rows(path: Path) -> Iterator[tuple[str, Record]]:
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines, strict=True, delimiter=_delimiter(path))
            if twice := _repeated([name for name in rows.fieldnames or () if name]):
                raise _unreadable(f"{path}, line 1", f"the column {twice!r} occurs twice")
            for row in rows:
                line = rows.line_num
                if None in row or None in row.values():
                    raise _unreadable(f"{path}, line {line}", "not as many cells as the header")
                yield f"line {line}", row
    except UnicodeDecodeError as error:
        raise _not_utf8(str(path), error) from error
    except csv.Error as error:
        raise _unreadable(f"{path}, after line {line}", f"not valid CSV ({error})") from error


def _parquet(path: Path) -> Iterator[tuple[str, Record]]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            if twice := _repeated(file.schema_arrow.names):
                raise _unreadable(str(path), f"the column {twice!r} occurs twice")
            for batch in file.iter_batches():
                for record in batch.to_pylist():
                    number += 1
                    yield f"row {number}", record
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        where = f"{path}, after row {number}" if number else str(path)
        raise _unreadable(where, f"not a complete Parquet file ({error})") from error


def class_names(path: Path, column: str) -> tuple[str, ...] | None:
    """Return a column's class names, as Hugging Face's `datasets` stores them in Parquet.

    Only a feature of type ClassLabel has them. None for any other column or file, and for a file
    with a column of choices. Raises DataValidationError as `read_records` does.
    """
    if path.suffix.lower() != ".parquet":
        return None
    try:
        schema = pq.read_schema(path)
        kept = (schema.metadata or {}).get(b"huggingface", b"{}")
        feature = json.loads(kept).get("info", {}).get("features", {}).get(column, {})
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(str(path), f"not a complete Parquet file ({error})") from error
    if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel":
        return None
    if "choices" in schema.names:  # MMLU's classes are A to D, not the texts of its choices
        return None
    return tuple(feature.get("names", ())) or None


def _delimiter(path: Path) -> str:
    """Return the delimiter that splits the header into the most cells."""

    def cells(delimiter: str) -> int:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            return len(next(csv.reader(lines, delimiter=delimiter), []))

    return max(DELIMITERS, key=cells)


def _unreadable(where: str, problem: str) -> DataValidationError:
    return DataValidationError(f"{where}: {problem}; correct or remove it")


def _not_utf8(where: str, error: UnicodeDecodeError) -> DataValidationError:
    return DataValidationError(f"{where}: not UTF-8 ({error}); save the file as UTF-8")
