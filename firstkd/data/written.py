"""Questions that a model writes in the style of a data set's (data-free distillation).

It writes a question and its choices, after Self-Instruct (Wang et al. 2023, arXiv 2212.10560), or
rephrases a question and keeps the choices. Teachers decide which of them is right.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from firstkd.data.examples import Example, normalise
from firstkd.data.settings import Dataset
from firstkd.data.text import is_blank
from firstkd.section import Name, Positive, Section, listed

BORDER = "\n\n"
"""Separates questions, and ends a written one."""
BETWEEN = " | "
"""Separates choices."""
QUESTION = re.compile(r"\s*(?P<question>.+?)\nAnswers: (?P<choices>[^\n]+)(\n.*)?", re.DOTALL)

WRITTEN = Dataset(format="questions", role="unlabelled")
"""How a written file is read."""


class WriteSettings(Section):
    by: Name
    """The model that writes; it must not be trained here or be behind a server."""
    like: Name
    """The data set whose training questions it is shown."""
    task: Literal["new", "paraphrase"] = "new"
    """Whether it writes new questions or rephrases those of the data set."""
    draws: Positive
    """Texts that it writes. Any that is not a question, or not a new one, is left out."""
    shots: Annotated[int, Field(ge=1, le=16)] = 4
    """Training questions that it sees before each text, redrawn each time. For a paraphrase it
    sees only the question itself."""
    temperature: Annotated[float, Field(gt=0, le=2)] = 0.8
    max_new_tokens: Annotated[int, Field(ge=16, le=1024)] = 96


def check_written(
    write: Mapping[str, WriteSettings], models: set[str], datasets: Mapping[str, Dataset]
) -> None:
    """Raise ValueError, naming the key, for settings that cannot work.

    `models` are those that exist before any data set does.
    """
    taken = {"train", "calibration", "test", *datasets}
    learned = {name for name, found in datasets.items() if found.is_learned}
    for name, settings in write.items():
        if name in taken:
            raise ValueError(f"write.{name}: a split or data set already has this name")
        if settings.by not in models:
            raise ValueError(
                f"write.{name}.by: {settings.by!r} does not exist, is trained here or is behind a "
                f"server; allowed: {listed(models) or 'none'}"
            )
        if settings.like in learned and not datasets[settings.like].has_choices:
            raise ValueError(
                f"write.{name}.like: {settings.like!r} is open text, but written questions have "
                "choices; name a data set with choices"
            )
        if settings.like not in learned:
            raise ValueError(
                f"write.{name}.like: {settings.like!r} is not a data set that models learn from; "
                f"allowed: {listed(learned)}"
            )


class Asked(NamedTuple):
    """A question and its choices, as a model reads and writes them."""

    question: str
    choices: tuple[str, ...]

    def text(self) -> str:
        return f"Question: {self.question}\nAnswers: {BETWEEN.join(self.choices)}"


def shown_questions(examples: Sequence[Example]) -> list[Asked]:
    """Return the questions that can be shown: those with choices, in one paragraph each."""
    found = [Asked(e.prompt, e.choices) for e in examples if e.choices and not e.history]
    return [each for each in found if BORDER not in each.text() and read(each.text()) == each]


class Draft(NamedTuple):
    """A text for a model to continue."""

    prompt: str
    of: Asked | None = None
    """The question to rephrase."""

    @property
    def border(self) -> str:
        """What ends the written text."""
        return BORDER if self.of is None else "\n"

    def is_ended(self, text: str) -> bool:
        """Whether anything follows the question, so that it is complete."""
        rest = text.partition("\nAnswers: ")[2] if self.of is None else text.lstrip()
        return "\n" in rest

    def read(self, text: str) -> Asked | None:
        """Return the question that the model has written; None if the text is not one."""
        if self.of is None:
            return read(text)
        question = text.strip().partition(self.border)[0].strip()
        return Asked(question, self.of.choices) if question else None


def drafts(shown: Sequence[Asked], settings: WriteSettings, seed: int) -> Iterator[Draft]:
    """Yield a draft for each draw; needs at least `shots` questions."""
    for number in range(settings.draws):
        if settings.task == "paraphrase":
            of = shown[number % len(shown)]
            question = of.question.replace("\n", " ")
            yield Draft(f"Question: {question}\nThe same question in other words:", of)
        else:
            drawn = Random(f"{seed}/{number}").sample(shown, settings.shots)
            yield Draft("".join(f"{each.text()}{BORDER}" for each in drawn) + "Question:")


def read(text: str) -> Asked | None:
    """Return the question in a text, with or without "Question:" before it; None if it has none.

    A question needs two or more choices on one line, none of them empty or repeated.
    """
    found = QUESTION.fullmatch(text.partition(BORDER)[0].removeprefix("Question:"))
    if not found:
        return None
    question, *choices = (
        part.strip() for part in [found["question"], *found["choices"].split(BETWEEN)]
    )
    if not question or len(choices) < 2 or any(map(is_blank, choices)):
        return None
    is_new = len({normalise(choice) for choice in choices}) == len(choices)
    return Asked(question, tuple(choices)) if is_new else None
