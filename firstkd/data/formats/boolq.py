"""BoolQ as published: `passage`, `question` (lower case, no question mark), `answer` a boolean."""

from collections.abc import Iterator

from firstkd.data.formats.entry import Entry, Format, Malformed, missing_answer, text_of
from firstkd.data.records import Record


def parse(record: Record, labelled: bool) -> Iterator[Entry]:
    passage, answer = text_of(record, "passage"), record.get("answer")
    if labelled and answer is None:
        raise missing_answer("answer")
    if labelled and not isinstance(answer, bool):
        raise Malformed(f"'answer' must be true or false, found {answer!r}")
    yield Entry(
        prompt=f"{passage}\n{text_of(record, 'question').rstrip('?')}?",
        choices=("no", "yes"),
        answer=answer,
        answers={"text": int(bool(answer))} if labelled else {},
        passage=passage,
    )


BOOLQ = Format(parse, "answer")
