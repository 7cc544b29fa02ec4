"""A first pass over a file's records: how to read its answers, and what is wrong with it."""

import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Self, get_args

from firstkd.data.formats.entry import Entry, Format, Malformed, Reading, Unfit
from firstkd.data.records import read_records
from firstkd.data.settings import Dataset
from firstkd.errors import DataValidationError
from firstkd.words import counted

log = logging.getLogger(__name__)

ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|#\d+|#x[0-9a-fA-F]+);")
READINGS: tuple[Reading, ...] = get_args(Reading)

MAX_PROBLEMS = 10
MAX_PLACES = 3
"""Places of each problem that an error names."""


class TooLong(Malformed):
    """A record with a turn longer than `skip_longer_than`."""


def parsed(path: Path, form: Format, dataset: Dataset) -> Iterator[tuple[str, list[Entry]]]:
    """Yield the place and the entries of each well-formed record."""
    for place, found, _ in _records(path, form, dataset):
        if not isinstance(found, Malformed):
            yield place, found


def _records(
    path: Path, form: Format, dataset: Dataset
) -> Iterator[tuple[str, list[Entry] | Malformed, object]]:
    """Yield each record's place, its entries or what is wrong with it, and its answer."""
    labelled = dataset.role != "unlabelled"
    for place, record in read_records(path):
        try:
            entries = [*form.parse(record, labelled)]
            too_long = any(_is_longer(entry, dataset.skip_longer_than) for entry in entries)
            found: list[Entry] | Malformed = TooLong() if too_long else entries
        except Malformed as error:
            found = error
        yield place, found, record.get(form.answer_key)


def _is_longer(entry: Entry, limit: int | None) -> bool:
    if limit is None:
        return False
    said = [turn.content for turn in entry.history or ()]
    turns = [entry.prompt, entry.context or "", entry.response, *(entry.choices or ()), *said]
    return max(map(len, turns)) > limit


@dataclass
class Survey:
    """What the records of a file have in common; its memory does not grow with their number."""

    entries: int = 0
    readings: Counter[Reading] = field(default_factory=Counter)
    """Number of entries whose answer names a choice, by reading."""
    differing: Counter[tuple[Reading, Reading]] = field(default_factory=Counter)
    """Number of entries whose answer names different choices under the two readings."""
    ignored_answers: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    entities: int = 0
    first_entity: str = ""
    problems: dict[str, list[str]] = field(default_factory=dict)
    """What is wrong, and the places where it occurs."""

    @classmethod
    def of(cls, path: Path, form: Format, dataset: Dataset) -> Self:
        survey, labelled = cls(), dataset.role != "unlabelled"
        for place, found, answer in _records(path, form, dataset):
            survey.ignored_answers += not labelled and answer not in (None, "")
            if not isinstance(found, Malformed):
                for entry in found:
                    survey._add(place, entry)
            elif isinstance(found, TooLong):
                survey.skipped["too_long"] += 1
            elif isinstance(found, Unfit) and found.holds in dataset.skip:
                survey.skipped[found.holds] += 1
            else:
                survey.problem(place, found)
        return survey

    def _add(self, place: str, entry: Entry) -> None:
        self.entries += 1
        self.readings.update(entry.answers.keys())
        for one, other in combinations(READINGS, 2):
            both = {one, other} <= entry.answers.keys()
            self.differing[one, other] += both and entry.answers[one] != entry.answers[other]
        if any(map(ENTITY.search, (entry.prompt, entry.response, *(entry.choices or ())))):
            self.entities += 1
            self.first_entity = self.first_entity or place

    def problem(self, place: str, error: Malformed) -> None:
        self.problems.setdefault(str(error), []).append(place)

    def check_any(self, path: Path, name: str) -> None:
        """Raise DataValidationError if the file has no records or all are left out."""
        if self.entries or self.problems:
            return
        if self.skipped:
            raise DataValidationError(
                f"{path}: every record is left out: {self._left_out()}; "
                f"change that in fetch.datasets.{name}, or remove the data set"
            )
        raise DataValidationError(
            f"{path}: no records found ({path.stat().st_size:,} bytes); correct "
            f"fetch.datasets.{name}.source, or remove the data set"
        )

    def _left_out(self) -> str:
        """Return how many records are left out, why, and by which setting."""
        told = {"too_long": "too long (skip_longer_than)"}
        return ", ".join(
            f"{count:,} {told.get(kind) or f'with {kind} (skip)'.replace('_', ' ')}"
            for kind, count in sorted(self.skipped.items())
        )

    def check_well_formed(self, path: Path, name: str) -> None:
        """Raise DataValidationError naming all problems and the first places of each."""
        if not self.problems:
            return
        lines = []
        for problem, places in [*self.problems.items()][:MAX_PROBLEMS]:
            more = len(places) - MAX_PLACES
            rest = f" and {more} more" if more > 0 else ""
            lines.append(f"{path}, {', '.join(places[:MAX_PLACES])}{rest}: {problem}")
        if len(self.problems) > MAX_PROBLEMS:
            lines.append(f"and {len(self.problems) - MAX_PROBLEMS} other problems")
        listed = "\n".join(lines)
        raise DataValidationError(
            f"{listed}; correct or remove it, or check `format`, `columns` "
            f"and `answers_are` in fetch.datasets.{name}"
        )

    def log(self, path: Path) -> None:
        """Log what was left out, and warn of HTML entities, which models would see as they are."""
        if self.ignored_answers:
            count = f"{self.ignored_answers:,}"
            log.info("%s: role unlabelled, so %s answers are ignored", path, count)
        if self.skipped:
            log.warning("%s: records left out: %s", path, self._left_out())
        if self.entities:
            log.warning(
                "%s: HTML entities such as &amp; in %s, the first at %s; unless that is intended, "
                "replace them with the characters",
                *(path, counted(self.entities, "record"), self.first_entity),
            )

    def agreed_reading(self, path: Path, dataset: Dataset, name: str) -> Reading | None:
        """Return the reading that names a choice in most entries; the first if there is a tie.

        None if no entry has an answer to read.
        """
        if not self.readings:
            return None
        if dataset.answers_are:
            return dataset.answers_are
        reading = max(READINGS, key=lambda each: self.readings[each])
        if dataset.format == "questions":
            share = f"{self.readings[reading]:,} of {self.entries:,}"
            log.info("%s: answers are read as the %s of a choice (%s)", path, reading, share)
        for one, other in combinations(READINGS, 2):
            if reading not in (one, other) or self.readings[one] != self.readings[other]:
                continue
            if differ := self.differing[one, other]:
                log.warning(
                    "%s: read as the %s of a choice, %s answers would name a different one; "
                    "if that is intended, set fetch.datasets.%s.answers_are",
                    *(path, other if reading == one else one, f"{differ:,}", name),
                )
        return reading
