"""What every format turns a record into, and the checks that formats share."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from firstkd.data.examples import Turn
from firstkd.data.records import Record
from firstkd.data.settings import Unwanted
from firstkd.data.text import clean, is_blank

Reading = Literal["text", "label", "letter", "index"]
"""How an answer can name a choice."""


class Malformed(Exception):
    """What is wrong with a record; the reader adds file and line."""


class Unfit(Malformed):
    """A record with something that a text model cannot learn from; a setting can skip it."""

    def __init__(self, holds: Unwanted, found: str) -> None:
        super().__init__(f"{found}; add {holds} to `skip` to leave such records out")
        self.holds = holds


@dataclass(frozen=True, slots=True)
class Entry:
    """One record: a question with choices, or open text with its response."""

    prompt: str
    choices: tuple[str, ...] | None
    response: str = ""
    """The response of open text; a question's response is its right choice."""
    answer: object = None
    """As the file has it."""
    answers: Mapping[Reading, int] = field(default_factory=dict)
    """The choice that the answer names under each reading that makes sense; empty if unlabelled."""
    passage: str | None = None
    """What the question is about, if the format says so."""
    id: object = None
    group: object = None
    history: tuple[Turn, ...] | None = None
    context: str | None = None


@dataclass(frozen=True, slots=True)
class Format:
    parse: Callable[[Record, bool], Iterable[Entry]]
    """Takes a record and whether it must have an answer; raises Malformed. Only conversations
    have several entries."""
    answer_key: str
    """The key of a record's answer."""


def text_of(record: Record, key: str) -> str:
    """Return a required text."""
    value = record.get(key)
    problem = f"{key!r} must be text, found {value!r}"
    if key in record and is_nothing(value):
        raise Unfit("empty_turns", problem)
    if not isinstance(value, str):
        raise Malformed(problem)
    return cleaned(value, key)


def context_of(record: Record, column: str | None) -> str | None:
    """Return the text that only views show, if its column is named and the record has one."""
    return None if column is None or is_nothing(record[column]) else text_of(record, column)


def is_nothing(value: object) -> bool:
    return value is None or (isinstance(value, str) and is_blank(value))


def answer_of(record: Record, key: str) -> str:
    """Return an answer in words or numbers as text; raises Malformed if there is none."""
    answer = record.get(key)
    if is_nothing(answer):
        raise missing_answer(key)
    return str(answer) if is_number(answer) else text_of(record, key)


def missing_answer(key: str) -> Malformed:
    return Malformed(
        f"the answer is missing: {key!r} is empty or absent; "
        "for questions without answers, set `role: unlabelled`"
    )


def cleaned(value: str, key: str) -> str:
    try:
        return clean(value)
    except ValueError as error:
        raise Malformed(f"{key!r} holds {error}") from error


def name_of(value: object, key: str) -> str:
    """Return an id or the name of a group as text, empty if there is none.

    NaN, which pandas writes for gaps, counts as none. Raises Malformed for a list, object or bool.
    """
    if value is None or value != value:
        return ""
    if not isinstance(value, str) and not is_number(value):
        raise Malformed(f"{key!r} must be text or a number, found {value!r}")
    return cleaned(str(value), key)


def labelled_choices(found: object) -> list[tuple[str, str]]:
    """Return the label, empty if there is none, and the text of each choice.

    Choices are a list of texts or numbers, a list of `{label, text}`, an object `{label: text}`,
    or the two lists of a Hugging Face dump, `{text: […], label: […]}`.
    """
    pairs: list[tuple[Any, Any]]
    if isinstance(found, dict) and {"text", "label"} == found.keys():
        texts, labels = found["text"], found["label"]
        if not isinstance(texts, list) or not isinstance(labels, list) or len(texts) != len(labels):
            raise Malformed(f"the choices need as many labels as texts, found {found!r}")
        pairs = [*zip(labels, texts, strict=True)]
    elif isinstance(found, dict):
        pairs = [*found.items()]
    elif isinstance(found, list) and found and all(isinstance(item, dict) for item in found):
        pairs = [(item.get("label"), item.get("text")) for item in found]
    elif isinstance(found, list):
        pairs = [("", item) for item in found]
    else:
        raise Malformed(f"the choices must be a list of texts, found {found!r}")
    return [("" if label is None else str(label).strip(), _choice(text)) for label, text in pairs]


def _choice(value: object) -> str:
    if isinstance(value, str):
        return cleaned(value, "choices")
    if not is_number(value):
        raise Malformed(f"a choice must be a text or a number, found {value!r}")
    if isinstance(value, float) and value.is_integer():  # gaps turn integers into floats
        return str(int(value))
    return str(value)


def is_number(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def check_choices(choices: list[str]) -> tuple[str, ...]:
    if len(choices) < 2 or any(map(is_blank, choices)):
        raise Malformed(f"expected two or more choices, none of them empty, found {choices}")
    return tuple(choices)
