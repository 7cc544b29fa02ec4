"""Which questions a model is measured on, and how each of its ways to answer takes its share.

A model chooses between given choices (tasks/choosing.py) or writes (tasks/writing.py).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from firstkd.data.examples import Example, read_examples
from firstkd.serving.promise import Promise
from tasks.scores import Decided


class Way(Protocol):
    """How a model answers some of the questions of a file."""

    @property
    def promise(self) -> Promise | None: ...

    def decide(self, file: Path) -> Decided | None:
        """Answer the file's questions of this kind; None where it has none."""


def decide_all(ways: Sequence[Way], prepared: Path) -> dict[str, tuple[Way, Decided]]:
    """Answer each test set in each way it can be, by the set's name.

    Open text beside questions with choices is a separate set: what is right is decided otherwise.
    """
    found: dict[str, tuple[Way, Decided]] = {}
    for file in test_files(prepared):
        for way in ways:
            if decided := way.decide(file):
                name = set_name(file)
                found[name if name not in found else f"{name} open text"] = way, decided
    return found


def with_choices(file: Path) -> list[Example]:
    return [example for example in read_examples(file) if example.choices]


def open_text(file: Path) -> list[Example]:
    return [example for example in read_examples(file) if not example.choices]


def test_files(prepared: Path) -> list[Path]:
    """The test set's questions, then those of each set out of domain."""
    return [prepared / "test.parquet", *sorted(prepared.glob("ood_*.parquet"))]


def set_name(file: Path) -> str:
    return file.stem.removeprefix("ood_")
