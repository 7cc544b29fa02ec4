"""CommonsenseQA, OpenBookQA and ARC, as their authors and the Hugging Face hub publish them.

Authors': `question: {stem, choices: [{label, text}]}`. Hub: `question` (or `question_stem`) and
`choices: {text: […], label: […]}`. Both: `id` and `answerKey`, a label.
"""

from collections.abc import Iterator

from firstkd.data.formats.cells import read_cell
from firstkd.data.formats.entry import (
    Entry,
    Format,
    Malformed,
    answer_of,
    check_choices,
    labelled_choices,
    text_of,
)
from firstkd.data.records import Record


def parse(record: Record, labelled: bool) -> Iterator[Entry]:
    question = record.get("question")
    if isinstance(question, dict):
        prompt, found = text_of(question, "stem"), question.get("choices")
    else:
        key = "question_stem" if "question_stem" in record else "question"
        prompt, found = text_of(record, key), record.get("choices")
        found = read_cell(found) if isinstance(found, str) else found
    pairs = labelled_choices(found)
    labels, texts = [label for label, _ in pairs], [text for _, text in pairs]
    answer = answer_of(record, "answerKey") if labelled else None
    if labelled and answer not in labels:
        raise Malformed(f"answerKey {answer!r} is not among the labels {labels}")
    yield Entry(
        prompt=prompt,
        choices=check_choices(texts),
        answer=answer,
        answers={"label": labels.index(answer)} if answer else {},
        id=record.get("id"),
    )


COMMONSENSEQA = Format(parse, "answerKey")
