"""From examples to token ids: how a question is put to the model, and what counts as its answer.

Two formats: `cloze` scores every choice as text behind the question, `letter` lists the choices
and asks for an option's letter (the paper's format, for models large enough to use letters).
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

from firstkd.data.examples import Example
from firstkd.data.settings import PromptSettings
from firstkd.errors import ConfigError, DataValidationError


class Tokenizer(Protocol):
    eos_token_id: int

    def __call__(self, text: list[str], add_special_tokens: bool = ...) -> Any: ...


@dataclass(frozen=True, slots=True)
class Question:
    """One example as token ids. Open text has one response, ended by the end-of-text token."""

    id: str
    prompt: list[int]
    responses: list[list[int]]
    """What may follow the prompt: the choices, or the one response."""
    gold: int | None
    """Index of the right response; None when it is unknown."""

    def gold_only(self) -> Self:
        """Leave out the wrong choices, of which cross-entropy makes no use."""
        assert self.gold is not None
        return replace(self, responses=[self.responses[self.gold]], gold=0)


def encode(
    examples: Sequence[Example], tokenizer: Tokenizer, settings: PromptSettings
) -> list[Question]:
    """Tokenise examples.

    What exceeds `max_length` loses the start of its prompt, never part of a response; a response
    that alone exceeds it raises DataValidationError, and ConfigError more choices than letters.
    """
    rendered = [_render(example, settings.format) for example in examples]
    prompts = tokenizer([prompt for prompt, _ in rendered], add_special_tokens=False)["input_ids"]
    texts = [text for _, responses in rendered for text in responses]
    encoded = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
    questions = []
    for example, prompt, (_, responses) in zip(examples, prompts, rendered, strict=True):
        ids = [next(encoded) for _ in responses]
        if example.choices is None:
            ids = [[*ids[0], tokenizer.eos_token_id]]
        room = settings.max_length - max(map(len, ids))
        if room < 1:
            raise DataValidationError(
                f"example {example.id}: its response has {max(map(len, ids))} tokens, "
                f"which leaves no room for the prompt in prompt.max_length = {settings.max_length}"
            )
        gold = 0 if example.choices is None else example.answer_index
        questions.append(Question(example.id, prompt[-room:], ids, gold))
    return questions


def _render(example: Example, prompt_format: str) -> tuple[str, list[str]]:
    choices, prompt = example.choices, example.prompt
    if choices is None:
        return f"Question: {prompt}\nAnswer:", [f" {example.response}"]
    if prompt_format == "cloze":
        return f"Question: {prompt}\nAnswer:", [f" {choice}" for choice in choices]
    letters = string.ascii_uppercase[: len(choices)]
    if len(choices) > len(letters):
        raise ConfigError(
            f"example {example.id} has {len(choices)} choices, and there are {len(letters)} "
            "letters: set prompt.format to cloze"
        )
    options = "".join(
        f"\n{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True)
    )
    return f"Question: {prompt}{options}\nAnswer:", [f" {letter}" for letter in letters]
