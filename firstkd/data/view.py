"""What a signal's model reads more than the student: instructions, solved questions, a passage.

A student that learns from it comes to answer as if it had read that, too: context distillation
(Askell et al. 2021, arXiv 2112.00861; Snell et al. 2022, arXiv 2209.15189), and with what only the
training questions have, learning with privileged information (Lopez-Paz et al. 2016, arXiv
1511.03643).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from heapq import nsmallest
from typing import Annotated

from pydantic import Field, StringConstraints

from firstkd.data.examples import Example, Turn, unit_hash
from firstkd.data.prompts import Question, encode
from firstkd.data.rendering import asked_plainly, letter_question
from firstkd.data.settings import ChatSettings, ChoiceFormat, PromptSettings
from firstkd.data.tokenising import Tokenizer
from firstkd.errors import ArtifactError
from firstkd.section import Section


class PromptView(Section):
    instructions: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)] | None = (
        None
    )
    """Before everything else; in a chat the system prompt, before a conversation's own."""
    shots: Annotated[int, Field(ge=0, le=64)] = 0
    """Training questions with their right answers before the question, of the same data set if it
    has as many; never the question itself. What is too long loses the first of them."""
    context: bool = False
    """Whether to put the text of `columns.context` before a question that has one."""
    max_length: Annotated[int, Field(ge=8)] | None = None
    """Tokens of prompt and response together; null for `prompt.max_length`."""

    @property
    def is_plain(self) -> bool:
        """Whether it shows nothing but the question."""
        return not (self.instructions or self.shots or self.context)


@dataclass
class Shots:
    """The questions that a view shows as solved: one more than there are shots, so that a question
    among them has others."""

    count: int = 0
    kept: dict[tuple[str, bool], list[Example]] = field(default_factory=dict)
    """By data set, or "" for all, and whether they have choices."""

    def add(self, examples: Iterable[Example]) -> None:
        """Keep the answered ones with the smallest hashes."""
        for example in examples if self.count else ():
            if example.response:
                for source in (example.source, ""):
                    self.kept.setdefault((source, bool(example.choices)), []).append(example)
        for key, found in self.kept.items():
            self.kept[key] = nsmallest(self.count + 1, found, key=lambda each: unit_hash(each.id))

    def of(self, example: Example) -> list[Example]:
        """Return as many as there should be, or all that there are."""
        found: list[Example] = []
        for source in (example.source, ""):
            if len(found) < self.count:
                kept = self.kept.get((source, bool(example.choices)), ())
                others = [e for e in kept if e.id != example.id and e.asked != example.asked]
                found = others[: self.count]
        return found


@dataclass(frozen=True)
class Viewer:
    """Puts examples to a signal's model, as its view says."""

    prompt: PromptSettings
    view: PromptView = field(default_factory=PromptView)
    shots: Shots = field(default_factory=Shots)

    def encode(
        self, examples: Sequence[Example], tokenizer: Tokenizer, same_tokens: bool = False
    ) -> list[Question]:
        """Tokenise examples as the model reads them, and raise what `encode` raises.

        With `same_tokens`, raise ArtifactError for a response whose tokens are others than the
        student's.
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

        `asks` is how its choices are asked for in a chat, if not as the prompt's settings say.
        """
        if self.view.is_plain:
            return example
        system, others = _parted(example.history or ())
        if self.view.instructions:
            told = [self.view.instructions, *(turn.content for turn in system)]
            system = [Turn("system", "\n\n".join(told))]
        solved = [
            turn for shot in self.shots.of(example) for turn in self._solved(self._with(shot), asks)
        ]
        history = (*system, *solved, *others)
        return replace(self._with(example), history=history or None)

    def _with(self, example: Example) -> Example:
        """Return an example behind its context, if the view shows one."""
        if not self.view.context or not example.context:
            return example
        return replace(example, prompt=f"{example.context}\n{example.prompt}")

    def _solved(self, shot: Example, asks: ChoiceFormat | None) -> list[Turn]:
        if asks is None and self.prompt.format == "chat":
            asks = (self.prompt.chat or ChatSettings()).choices
        if asks == "letter" and shot.choices is not None:
            question, responses = letter_question(shot)
        else:
            is_letter = asks is None and self.prompt.format == "letter"
            question, responses = asked_plainly(shot, "letter" if is_letter else "cloze")
        right = responses[shot.answer_index or 0]
        return [*(shot.history or ()), Turn("user", question), Turn("assistant", right)]


def _parted(history: Sequence[Turn]) -> tuple[list[Turn], list[Turn]]:
    """Return the system's turns and the others."""
    system = [turn for turn in history if turn.role == "system"]
    return system, [turn for turn in history if turn.role != "system"]


def _check_responses(shown: Sequence[Question], asked: Sequence[Question]) -> None:
    for ours, theirs in zip(shown, asked, strict=True):
        if ours.responses != theirs.responses:
            raise ArtifactError(
                f"example {ours.id}: behind what the view shows, its response has other tokens "
                "than the student reads; learn from a signal of choices"
            )
