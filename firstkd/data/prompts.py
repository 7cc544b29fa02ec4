"""From examples to token ids: how a question is put to the model, and what counts as its answer."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

from firstkd.data.chat import ChatTemplate
from firstkd.data.examples import Example
from firstkd.data.rendering import Rendered, render_plain
from firstkd.data.settings import ChatSettings, PromptSettings
from firstkd.data.tokenising import Split, Tokenizer, starting_ids, tokenise
from firstkd.errors import ArtifactError, DataValidationError


@dataclass(frozen=True, slots=True)
class Question:
    """One example as token ids. Open text has one response, ended by the end-of-text token.

    An unanswered question has no gold; if it is open text, it has no response either.
    """

    id: str
    prompt: list[int]
    responses: list[list[int]]
    """What may follow the prompt: the choices, or the one response."""
    gold: int | None
    """Index of the right response; None if it is unknown."""

    @property
    def length(self) -> int:
        """Tokens of the prompt and its longest response."""
        return len(self.prompt) + max(map(len, self.responses), default=0)

    def gold_only(self) -> Self:
        """Leave out the wrong choices, which cross-entropy does not use."""
        if self.gold is None:
            return replace(self, responses=[])
        return replace(self, responses=[self.responses[self.gold]], gold=0)


CHUNK_TEXTS = 4096
"""Texts tokenised at a time, one per choice: offsets take far more memory than ids."""


def encode(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    settings: PromptSettings,
    are_viewed: bool = False,
) -> list[Question]:
    """Tokenise examples as the model would see them: prompt and response in one text.

    The text is split where the response begins; a token that spans the border or depends on the
    response belongs to the response, so all responses of a question share one prompt. Plain text
    starts with what the tokenizer puts in front of every text (BOS), if anything; a chat template
    writes its own. Special tokens that users write ("</s>") stay text, and in chats so do all
    control tokens.

    An example longer than `max_length` loses the oldest turns of its conversation, then the start
    of its question, but never the BOS, the system prompt, the template's text or part of a
    response. An example without an answer has no gold; open text without one has no response.
    If examples `are_viewed`, what precedes their question is what a view shows, not a conversation.

    Raises DataValidationError if that leaves nothing of the question or the chat template does not
    fit the turns, ConfigError for more choices than letters and for a conversation in plain text,
    ArtifactError for a tokenizer that cannot tell where tokens lie, has no chat template or, with
    open text, no end-of-text token.
    """
    is_chat = settings.format == "chat"
    start = [] if is_chat else starting_ids(tokenizer)
    questions = []
    tokenised = split_examples(examples, tokenizer, settings, are_viewed)
    for example, (_, split) in zip(examples, tokenised, strict=True):
        if example.choices is None and not is_chat:
            ended = [[*response, _end_of_text(tokenizer)] for response in split.responses]
            split = split._replace(responses=ended)
        prompt = _fitted(example.id, start, split, settings.max_length, are_viewed)
        questions.append(Question(example.id, prompt, split.responses, gold_of(example)))
    return questions


def split_examples(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    settings: PromptSettings,
    are_viewed: bool = False,
) -> Iterator[tuple[Rendered, Split]]:
    """Render and tokenise examples, dropping the oldest turns of those beyond `max_length`."""
    is_chat = settings.format == "chat"
    render = _renderer(tokenizer, settings, are_viewed)

    def split(some: Sequence[Example]) -> list[tuple[Rendered, Split]]:
        rendered = [render(example) for example in some]
        return [*zip(rendered, tokenise(rendered, tokenizer, is_chat), strict=True)]

    def fits(example: Example) -> bool:
        return split([example])[0][1].length <= settings.max_length

    for chunk in in_chunks(examples):
        for example, found in zip(chunk, split(chunk), strict=True):
            is_long = found[1].length > settings.max_length
            if is_long and (shorter := _without_oldest_turns(example)):
                number = bisect_left(shorter[:-1], True, key=fits)
                [found] = split([shorter[number]])
            yield found


def in_chunks(examples: Sequence[Example]) -> Iterator[list[Example]]:
    """Yield runs of examples with at most CHUNK_TEXTS texts, or a single larger example."""
    chunk: list[Example] = []
    texts = 0
    for example in examples:
        count = len(example.choices or [""])
        if chunk and texts + count > CHUNK_TEXTS:
            yield chunk
            chunk, texts = [], 0
        chunk.append(example)
        texts += count
    if chunk:
        yield chunk


def _without_oldest_turns(example: Example) -> list[Example]:
    """Return versions of an example with ever fewer turns, but always with its system prompt.

    What is left begins with a user turn, as templates require, or is the question alone.
    """
    history = example.history or ()
    first = next((i for i, turn in enumerate(history) if turn.role != "system"), len(history))
    starts = [i for i in range(first + 1, len(history)) if history[i].role == "user"]
    if first < len(history):
        starts.append(len(history))
    return [replace(example, history=(*history[:first], *history[i:]) or None) for i in starts]


def _renderer(
    tokenizer: Tokenizer, settings: PromptSettings, are_viewed: bool
) -> Callable[[Example], Rendered]:
    if settings.format == "chat":
        return ChatTemplate(tokenizer, settings.chat or ChatSettings()).render
    return partial(render_plain, choice_format=settings.format, is_viewed=are_viewed)


def _fitted(
    name: str, start: list[int], split: Split, max_length: int, is_viewed: bool
) -> list[int]:
    """Return `start` and the prompt, without the first tokens of a question that is too long.

    Raises DataValidationError if nothing of the question would be left.
    """
    prompt = [*start, *split.prompt]
    excess = len(start) + split.length - max_length
    if excess <= 0:
        return prompt
    if excess >= len(split.question):
        kept = len(prompt) - len(split.question)
        longest = split.length - len(split.prompt)
        has = [f"its response has {longest} tokens"] * (longest > 0)
        if kept > len(start):
            takes = "the chat template and any system prompt take"
            if is_viewed:
                takes = "what the view shows takes"
            has.append(f"{takes} {kept} tokens")
        key = "the view's max_length" if is_viewed else "prompt.max_length"
        raise DataValidationError(
            f"example {name}: {' and '.join(has)}, which leaves no room for the question; raise "
            f"{key} in params.yaml, or shorten the example or its system prompt"
        )
    cut = len(start) + split.question.start
    return prompt[:cut] + prompt[cut + excess :]


def gold_of(example: Example) -> int | None:
    """Return the index of the right response; None if it is unknown."""
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
