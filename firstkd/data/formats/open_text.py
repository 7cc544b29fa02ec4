"""Open text in columns that you name: the question, and the answer in words.

If an answer is a list, because several people have answered, the first is used.
"""

from collections.abc import Iterator
from functools import partial

from firstkd.data.formats.entry import Entry, Format, Malformed, cleaned, context_of
from firstkd.data.formats.questions import MISSING, cell, question_of
from firstkd.data.records import Record
from firstkd.data.settings import Dataset


def open_text(dataset: Dataset) -> Format:
    return Format(partial(_parse, dataset), dataset.columns.answer)


def _parse(dataset: Dataset, record: Record, labelled: bool) -> Iterator[Entry]:
    columns = dataset.columns
    row = {name: cell(record, name) for name in {*columns.needed, columns.id, columns.answer}}
    missing = [name for name in [*columns.needed, columns.answer] if row[name] is MISSING]
    if missing:
        raise Malformed(
            f"there is no {', '.join(map(repr, missing))}, only {', '.join(map(repr, record))}"
        )
    answer = row[columns.answer]
    if isinstance(answer, list) and answer:
        answer = answer[0]
    if not isinstance(answer, str):
        raise Malformed(f"{columns.answer!r} must be text or a list of texts, found {answer!r}")
    asked = question_of(row, columns)
    yield Entry(
        prompt=f"{dataset.instruction}\n{asked}" if dataset.instruction else asked,
        choices=None,
        response=cleaned(answer, columns.answer),
        id=None if row[columns.id] is MISSING else row[columns.id],
        group=row[columns.group] if columns.group else None,
        context=context_of(row, columns.context),
    )
