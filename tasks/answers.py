"""Which questions a model is measured on, and which of its ways of answering takes which.

A model picks one of the choices (tasks/choosing.py) or writes (tasks/writing.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from firstkd.data.examples import Example, chunks, example_chunks
from firstkd.serving.promise import Promise
from tasks.scores import Decided


class Way(Protocol):
    """How a model answers some of the questions of a file."""

    @property
    def promise(self) -> Promise | None: ...

    def decide(self, file: Path) -> Decided | None:
        """Answer the file's questions of this kind; None if it has none."""


def decide_all(ways: Sequence[Way], prepared: Path) -> dict[str, tuple[Way, Decided]]:
    """Answer each test set in every way that applies; return the answers by the set's name.

    Open text beside questions with choices is a separate set, since it is judged differently.
    """
    found: dict[str, tuple[Way, Decided]] = {}
    for file in test_files(prepared):
        for way in ways:
            if decided := way.decide(file):
                name = set_name(file)
                found[name if name not in found else f"{name} open text"] = way, decided
    return found


@dataclass(frozen=True)
class Asked:
    """A file's questions with choices, or those without, in chunks; can be iterated repeatedly."""

    file: Path
    has_choices: bool

    def __iter__(self) -> Iterator[list[Example]]:
        examples = (example for part in example_chunks(self.file) for example in part)
        return chunks(each for each in examples if bool(each.choices) == self.has_choices)

    def __bool__(self) -> bool:
        return next(iter(self), None) is not None


def test_files(prepared: Path) -> list[Path]:
    """The test set's questions, then those of each out-of-domain set."""
    return [prepared / "test.parquet", *sorted(prepared.glob("ood_*.parquet"))]


def set_name(file: Path) -> str:
    return file.stem.removeprefix("ood_")
