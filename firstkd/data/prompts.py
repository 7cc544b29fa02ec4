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
from firstkd.errors import ArtifactError, ConfigError, DataValidationError


class Tokenizer(Protocol):
    eos_token_id: int

    @property
    def is_fast(self) -> bool: ...

    def __call__(
        self,
        text: list[str],
        add_special_tokens: bool = ...,
        return_offsets_mapping: bool = ...,
        split_special_tokens: bool = ...,
    ) -> Any: ...


@dataclass(frozen=True, slots=True)
class Question:
    """One example as token ids. Open text has one response, ended by the end-of-text token.

    A question that nobody has answered has no gold; if it is of open text, it has no response.
    """

    id: str
    prompt: list[int]
    responses: list[list[int]]
    """What may follow the prompt: the choices, or the one response."""
    gold: int | None
    """Index of the right response; None when it is unknown."""

    def gold_only(self) -> Self:
        """Leave out the wrong choices, of which cross-entropy makes no use."""
        if self.gold is None:
            return replace(self, responses=[])
        return replace(self, responses=[self.responses[self.gold]], gold=0)


CHUNK_EXAMPLES = 1024
"""Tokenised at a time: offsets take far more memory than ids."""


def encode(
    examples: Sequence[Example], tokenizer: Tokenizer, settings: PromptSettings
) -> list[Question]:
    """Tokenise examples as the model would meet them: prompt and response in one text.

    The text is split where the response begins; a token that spans the border, or that depends on
    the response, counts to the response, so all responses of a question share one prompt. It starts
    with what the tokenizer puts in front of every text (BOS), if anything. Control tokens that
    users write ("</s>") stay text.

    What exceeds `max_length` loses the start of its prompt, but not the BOS, and never part of a
    response. An example without an answer gives no gold; open text without one has no response.

    Raises DataValidationError for a response that alone exceeds `max_length`, ConfigError for more
    choices than letters, ArtifactError for a tokenizer that cannot tell where tokens lie or, with
    open text, has no end-of-text token.
    """
    start = starting_ids(tokenizer)
    questions = []
    for first in range(0, len(examples), CHUNK_EXAMPLES):
        chunk = examples[first : first + CHUNK_EXAMPLES]
        rendered = [_render(example, settings.format) for example in chunk]
        split = iter(_tokenise(rendered, tokenizer))
        for example in chunk:
            prompt, responses = next(split)
            if example.choices is None:
                responses = [[*response, _end_of_text(tokenizer)] for response in responses]
            prompt = _fitted(example.id, start, prompt, responses, settings.max_length)
            questions.append(Question(example.id, prompt, responses, _gold(example)))
    return questions


def starting_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the ids that the tokenizer puts in front of a text: its BOS, or none."""
    bare, whole = (
        tokenizer(["a"], add_special_tokens=special)["input_ids"][0] for special in (False, True)
    )
    ends = (i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return list(whole[: next(ends, 0)])


def _tokenise(
    rendered: Sequence[tuple[str, list[str]]], tokenizer: Tokenizer
) -> list[tuple[list[int], list[list[int]]]]:
    """Prompt and responses of each example, as they are tokenised together."""
    if not tokenizer.is_fast:
        raise ArtifactError(
            "the model's tokenizer has no tokenizer.json, without which it cannot be seen where a "
            "response's tokens begin; convert it with transformers first"
        )
    texts = [prompt + text for prompt, responses in rendered for text in responses or [""]]
    found = tokenizer(
        texts, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True
    )
    encoded = zip(found["input_ids"], found["offset_mapping"], strict=True)
    split = []
    for prompt, responses in rendered:
        joint = [next(encoded) for _ in responses or [""]]
        shared = _shared_tokens(joint, len(prompt))
        texts_ids = [ids[shared:] for ids, _ in joint[: len(responses)]]
        split.append((joint[0][0][:shared], texts_ids))
    return split


def _shared_tokens(joint: Sequence[tuple[list[int], list[tuple[int, int]]]], border: int) -> int:
    """How many first tokens lie before the character `border` in all texts, and are the same."""
    (first, _), *others = joint
    shared = len(first)
    for ids, offsets in joint:
        end = len(ids)
        while end and offsets[end - 1][1] > border:
            end -= 1
        # a token of no width, as trimmed white space has, belongs to what follows it
        while end and offsets[end - 1][0] >= border:
            end -= 1
        shared = min(shared, end)
    for ids, _ in others:
        while ids[:shared] != first[:shared]:
            shared -= 1
    return shared


def _fitted(
    name: str, start: list[int], prompt: list[int], responses: list[list[int]], max_length: int
) -> list[int]:
    """The prompt behind its BOS, without as much of its start as has no room."""
    longest = max(map(len, responses), default=0)
    room = max_length - longest - len(start)
    if room < 1:
        raise DataValidationError(
            f"example {name}: its response has {longest} tokens, "
            f"which leaves no room for the prompt in prompt.max_length = {max_length}; raise it in "
            "params.yaml, or shorten or remove the example"
        )
    return [*start, *prompt[-room:]]


def _gold(example: Example) -> int | None:
    if example.choices is None:
        return 0 if example.response else None
    return example.answer_index


def _end_of_text(tokenizer: Tokenizer) -> int:
    end: int | None = tokenizer.eos_token_id
    if end is None:
        raise ArtifactError(
            "the model's tokenizer has no end-of-text token (eos_token), which open text needs; "
            "name one in tokenizer_config.json"
        )
    return end


def _render(example: Example, prompt_format: str) -> tuple[str, list[str]]:
    choices, prompt = example.choices, example.prompt
    if choices is None:
        responses = [f" {example.response}"] if example.response else []
        return f"Question: {prompt}\nAnswer:", responses
    if prompt_format == "cloze":
        return f"Question: {prompt}\nAnswer:", [f" {choice}" for choice in choices]
    letters = string.ascii_uppercase[: len(choices)]
    if len(choices) > len(letters):
        raise ConfigError(
            f"params.yaml: prompt.format: letter: example {example.id} has {len(choices)} "
            f"choices, and there are {len(letters)} letters; set it to cloze"
        )
    options = "".join(
        f"\n{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True)
    )
    return f"Question: {prompt}{options}\nAnswer:", [f" {letter}" for letter in letters]
