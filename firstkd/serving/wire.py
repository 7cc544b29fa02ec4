"""What goes over the wire: requests, checked before anything is computed, and answers."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from firstkd.data.examples import content_id

Text = Annotated[
    str, Field(min_length=1, max_length=20_000, pattern=r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$")
]
"""No control characters except tabs and line breaks."""

Route = Literal["answered", "abstained", "escalated", "fallback"]


class Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    question: Text
    choices: Annotated[list[Text], Field(min_length=2)] | None = None
    """May be left out if all calibration questions shared theirs, or for open text."""


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    questions: Annotated[list[Asked], Field(min_length=1)]


def question_id(question: str, choices: Sequence[str]) -> str:
    """Return a served question's ID, which equal questions with equal choices share."""
    return content_id("", question, choices).removeprefix("/")


class Told(BaseModel):
    id: str
    """Digest of the question and its choices, for corrections."""
    route: Route
    """`answered`: by the student, at or above its threshold. `abstained`: below it, with nobody to
    pass it on to. `escalated`: answered by `by`. `fallback`: passing it on failed, so this is the
    student's own answer, below its threshold."""
    answer: str | None
    """None if abstained."""
    confidence: float | None
    """Confidence of whoever answered: the student's is calibrated, another's is as it reports, or
    None."""
    by: str
    reason: str | None = None
    """Why passing on failed."""
    guess: str
    """The student's own answer, whatever the route."""
    guess_confidence: float


class Response(BaseModel):
    answers: list[Told]
    """One for each question, in order."""
