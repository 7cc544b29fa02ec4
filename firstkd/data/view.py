"""What a signal's model reads and the student does not: instructions, solved questions, a passage.

A student that learns from it comes to answer as if it had read that, too: context distillation
(Askell et al. 2021, arXiv 2112.00861; Snell et al. 2022, arXiv 2209.15189). If only the training
questions have it, that is learning with privileged information (Lopez-Paz et al. 2016, arXiv
1511.03643).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from heapq import nsmallest
from itertools import islice
from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from firstkd.data.examples import Example, Turn, normalise, unit_hash
from firstkd.data.prompts import Question, encode
from firstkd.data.rendering import asked_in_chat, asked_plainly
from firstkd.data.settings import ChatSettings, ChoiceFormat, PromptSettings
from firstkd.data.tokenising import Tokenizer
from firstkd.errors import ConfigError
from firstkd.section import Section


class PromptView(Section):
    instructions: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)] | None = (
        None
    )
    """Text before everything else; in a chat the system prompt, before a conversation's own."""
    shots: Annotated[int, Field(ge=0, le=64)] = 0
    """Training questions to show with their right answers before the question, from the same data
    set if it has enough; never the question itself, or one from its conversation or passage. If
    they are too long together, the first of them are left out."""
    context: bool = False
    """Whether to put the text of `columns.context` before a question that has one."""
    max_length: Annotated[int, Field(ge=8)] | None = None
    """Tokens of prompt and response together; null for `prompt.max_length`. Chats are sent to a
    server whole."""

    @model_validator(mode="after")
    def _length_is_of_something(self) -> Self:
        if self.max_length and self.is_plain:
            raise ValueError(
                f"max_length: {self.max_length}, but the view shows nothing; set instructions, "
                "shots or context"
            )
        return self

    @property
    def is_plain(self) -> bool:
        """Whether it shows nothing but the question."""
        return not (self.instructions or self.shots or self.context)


@dataclass
class Shots:
    """The questions that a view shows with their answers, and spares for when one of them is the
    question asked."""

    count: int = 0
    kept: dict[tuple[str, bool], dict[str, Example]] = field(default_factory=dict)
    """By data set, or "" for all, and whether they have choices: one example per group or, without
    groups, per question."""

    def add(self, examples: Iterable[Example]) -> None:
        """Keep the answered examples whose ids have the smallest hashes."""
        for example in examples if self.count else ():
            if example.response:
                for source in (example.source, ""):
                    kept = self.kept.setdefault((source, bool(example.choices)), {})
                    key = example.group or normalise(example.asked)
                    kept[key] = min(example, kept.get(key, example), key=_place)
        for kind, kept in self.kept.items():
            least = nsmallest(self.count + 1, kept.items(), key=lambda item: _place(item[1]))
            self.kept[kind] = dict(least)

    def of(self, example: Example) -> list[Example]:
        """Return `count` questions to show before an example, or as many as there are."""
        asked, found = normalise(example.asked), list[Example]()
        for source in (example.source, ""):
            if len(found) < self.count:
                kept = self.kept.get((source, bool(example.choices)), {})
                others = (
                    shot
                    for group, shot in kept.items()
                    if group != example.group
                    and shot.id != example.id
                    and normalise(shot.asked) != asked
                )
                found = [*islice(others, self.count)]
        return found


def _place(example: Example) -> tuple[float, str]:
    return unit_hash(example.id), example.id


@dataclass(frozen=True)
class Viewer:
    """Shows examples to a signal's model as its view says."""

    prompt: PromptSettings
    view: PromptView = field(default_factory=PromptView)
    shots: Shots = field(default_factory=Shots)

    def encode(
        self, examples: Sequence[Example], tokenizer: Tokenizer, same_tokens: bool = False
    ) -> list[Question]:
        """Tokenise examples as the model reads them; raises as `prompts.encode` does.

        With `same_tokens`, also raises ConfigError for a response that the tokenizer cuts
        differently for the student.
        """
        if self.view.is_plain:
            return encode(examples, tokenizer, self.prompt)
        shown = [self.shown(example) for example in examples]
        longest = {"max_length": self.view.max_length or self.prompt.max_length}
        settings = self.prompt.model_copy(update=longest)
        questions = encode(shown, tokenizer, settings, are_viewed=True)
        if same_tokens:
            _check_responses(questions, encode(examples, tokenizer, self.prompt))
        return questions

    def shown(self, example: Example, asks: ChoiceFormat | None = None) -> Example:
        """Return an example with the turns and the passage that the view puts before it.

        `asks` is how choices are asked for in a chat, if not as the prompt's settings say.
        """
        if self.view.is_plain:
            return example
        system, others = _parted(example.history or ())
        if self.view.instructions:
            own = self.prompt.chat.system if self.prompt.chat else None
            told = [turn.content for turn in system] or ([own] if own else [])
            system = [Turn("system", "\n\n".join([self.view.instructions, *told]))]
        shots = [self._with(shot) for shot in self.shots.of(example)]
        solved = [turn for shot in shots for turn in self._solved(shot, asks)]
        history = (*system, *solved, *others)
        return replace(self._with(example), history=history or None)

    def _with(self, example: Example) -> Example:
        """Return an example with its context in front, if the view shows one."""
        if not self.view.context or not example.context:
            return example
        return replace(example, prompt=f"{example.context}\n{example.prompt}")

    def _solved(self, shot: Example, asks: ChoiceFormat | None) -> list[Turn]:
        """Return the turns of a question and its answer, without its own system prompt."""
        if asks or self.prompt.format == "chat":
            asks = asks or (self.prompt.chat or ChatSettings()).choices
            question, responses = asked_in_chat(shot, asks)
        else:
            question, responses = asked_plainly(shot, self.prompt.format)
        right = responses[shot.answer_index or 0]
        _, before = _parted(shot.history or ())
        return [*before, Turn("user", question), Turn("assistant", right)]


def _parted(history: Sequence[Turn]) -> tuple[list[Turn], list[Turn]]:
    """Return the system turns that a conversation begins with, and all others."""
    first = next((i for i, turn in enumerate(history) if turn.role != "system"), len(history))
    return [*history[:first]], [*history[first:]]


def _check_responses(shown: Sequence[Question], asked: Sequence[Question]) -> None:
    for ours, theirs in zip(shown, asked, strict=True):
        if ours.responses != theirs.responses:
            raise ConfigError(
                f"example {ours.id}: after the view's text, the tokenizer splits its response "
                "into different tokens than for the student; learn from a signal of choices"
            )
