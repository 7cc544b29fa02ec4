"""A user's own file, with the columns or keys that params.yaml names."""

import string
import unicodedata
from collections.abc import Iterable, Iterator
from functools import partial

from firstkd.data.examples import unit_hash
from firstkd.data.formats.cells import read_cell
from firstkd.data.formats.entry import (
    Entry,
    Format,
    Malformed,
    Reading,
    check_choices,
    cleaned,
    context_of,
    is_nothing,
    is_number,
    labelled_choices,
    missing_answer,
    text_of,
)
from firstkd.data.records import Record
from firstkd.data.settings import Columns, Dataset, listed_in


def questions(dataset: Dataset) -> Format:
    return Format(partial(_parse, dataset), dataset.columns.answer)


def _parse(dataset: Dataset, record: Record, labelled: bool) -> Iterator[Entry]:
    columns = dataset.columns
    needed = [*columns.needed, *([] if dataset.labels else listed_in(columns.choices))]
    needed += [columns.answer] if labelled else []
    row = {column: cell(record, column) for column in {*needed, columns.id, columns.answer}}
    missing = [column for column in needed if row[column] is MISSING]
    if missing:
        raise Malformed(
            f"there is no {', '.join(map(repr, missing))}, only {', '.join(map(repr, record))}"
        )
    found = [*dataset.labels] if dataset.labels else _found(row, columns)
    pairs = labelled_choices(found)
    # with a column per choice, an empty cell means that the question has no such choice
    own_column = not dataset.labels and not isinstance(columns.choices, str)
    kept = [i for i, (_, text) in enumerate(pairs) if text or not own_column]
    question = question_of(row, columns)
    answer = row[columns.answer]
    is_marked = isinstance(answer, list) and not dataset.labels
    if is_marked or (own_column and columns.answer in columns.choices):
        # authors who mark the right answer, or give it its own column, tend to list it first
        kept.sort(key=lambda i: unit_hash(f"{question}\n{pairs[i][1]}"))
    answers: dict[Reading, int] = {}
    if labelled:
        read = _named(dataset, answer, found, pairs)
        answers = {reading: kept.index(i) for reading, i in read.items() if i in kept}
        if not answers:
            raise _unreadable(answer, [text for _, text in pairs], dataset.first_index)
    yield Entry(
        prompt=question,
        choices=check_choices([pairs[i][1] for i in kept]),
        answer=answer,
        answers=answers,
        id=None if row[columns.id] is MISSING else row[columns.id],
        group=row[columns.group] if columns.group else None,
        context=context_of(row, columns.context),
    )


MISSING = object()


def cell(record: Record, column: str) -> object:
    """Return a record's value under a column's name, or under the keys that `a.b` names."""
    if column in record:
        return record[column]
    first, _, rest = column.partition(".")
    inner = record.get(first)
    return cell(inner, rest) if rest and isinstance(inner, dict) else MISSING


def question_of(row: Record, columns: Columns) -> str:
    """Return the question of a row, after its passage if it has one."""
    *before, last = listed_in(columns.question)
    told = [text_of(row, column) for column in before if not is_nothing(row[column])]
    return "\n".join([*told, text_of(row, last)])


def _named(
    dataset: Dataset, answer: object, found: object, pairs: list[tuple[str, str]]
) -> dict[Reading, int]:
    """Return the choice that an answer names, under each reading that names one."""
    if answer in (None, ""):
        raise missing_answer(dataset.columns.answer)
    if isinstance(answer, list):
        return {"index": _marked(answer, len(pairs))}
    values = found.values() if isinstance(found, dict) else found
    numeric = isinstance(values, Iterable) and all(is_number(v) for v in values if v != "")
    # params.yaml has all labels as text, so only the answers show whether they are numbers
    return _readings(answer, pairs, dataset.first_index, numeric or bool(dataset.labels))


def _marked(answer: list[object], choices: int) -> int:
    """Return the index of the one choice marked with 1; all others must have 0."""
    if len(answer) != choices or not all(mark in (0, 1) for mark in answer):
        raise Malformed(
            f"the answer must mark each of {choices} choices with 0 or 1, not {answer!r}"
        )
    if sum(map(bool, answer)) != 1:
        raise Malformed(
            f"{sum(map(bool, answer))} choices are marked as right; a question has one right answer"
        )
    return answer.index(1)


def _found(row: Record, columns: Columns) -> object:
    """Return the choices as the record has them, in one column or several."""
    if not isinstance(columns.choices, str):
        cells = {column: row[column] for column in columns.choices}
        return {column: "" if cell is None else cell for column, cell in cells.items()}
    found: object = row[columns.choices]
    return read_cell(found) if isinstance(found, str) else found


def _readings(
    answer: object, pairs: list[tuple[str, str]], first_index: int, numeric: bool
) -> dict[Reading, int]:
    """Return the choice that an answer names as a text, label, letter or number.

    A number names a choice by its index, and by its text only if the choices may be `numeric`.
    """
    if isinstance(answer, float) and answer.is_integer():  # gaps turn integers into floats
        names = {str(answer), str(int(answer))}
    elif isinstance(answer, str):
        names = {cleaned(answer, "answer")}
    else:
        names = {str(answer)} if is_number(answer) else set()
    texts: dict[Reading, list[str]] = {
        "text": [text for _, text in pairs],
        "label": [label for label, _ in pairs],
        "letter": [*string.ascii_uppercase[: len(pairs)]],
        "index": [str(first_index + position) for position in range(len(pairs))],
    }
    if not isinstance(answer, str):
        del texts["letter"]
        if not numeric:
            del texts["text"]
    found: dict[Reading, int] = {}
    for reading, texts_of_it in texts.items():
        choices = [*map(_composed, texts_of_it)]
        for name in names - {""}:
            given = _composed(name.upper() if reading == "letter" else name)
            if given in choices:
                found.setdefault(reading, choices.index(given))
    return found


def _composed(text: str) -> str:
    """Return a text in the one form that equivalent Unicode spellings of é and the like share."""
    return unicodedata.normalize("NFC", text)


def _unreadable(answer: object, texts: list[str], first_index: int) -> Malformed:
    from_one = first_index == 0 and str(answer).strip() == str(len(texts))
    hint = ", or `first_index: 1` if yours count from 1" if from_one else ""
    return Malformed(
        f"answer {answer!r} is not among the choices {texts}; allowed: their text, label, "
        f"letter, or index from {first_index}{hint}"
    )
