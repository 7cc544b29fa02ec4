"""From examples to token ids: how a question is put to the model, and what counts as its answer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol, Self

from firstkd.data.chat import ChatTemplate
from firstkd.data.control import Characters, Encoded, control_tokens, written_as_text
from firstkd.data.examples import Example
from firstkd.data.rendering import Rendered, render_plain
from firstkd.data.settings import ChatSettings, PromptSettings
from firstkd.errors import ArtifactError, DataValidationError


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


CHUNK_TEXTS = 4096
"""Tokenised at a time, a text for each choice: offsets take far more memory than ids."""


def encode(
    examples: Sequence[Example], tokenizer: Tokenizer, settings: PromptSettings
) -> list[Question]:
    """Tokenise examples as the model would meet them: prompt and response in one text.

    The text is split where the response begins; a token that spans the border, or that depends on
    the response, counts to the response, so all responses of a question share one prompt. Plain
    text starts with what the tokenizer puts in front of every text (BOS), if anything; a chat
    template writes its own. Control tokens that users write ("</s>") stay text.

    What exceeds `max_length` loses the start of its prompt, but not the BOS or the template's
    head, and never part of a response. An example without an answer gives no gold; open text
    without one has no response.

    Raises DataValidationError for a response that alone exceeds `max_length` and for turns that
    the chat template does not fit, ConfigError for more choices than letters and for a
    conversation in plain text, ArtifactError for a tokenizer that cannot tell where tokens lie,
    has no chat template or, with open text, no end-of-text token.
    """
    is_chat = settings.format == "chat"
    start = [] if is_chat else starting_ids(tokenizer)
    render = renderer(tokenizer, settings)
    questions = []
    for chunk in in_chunks(examples):
        split = tokenise([render(example) for example in chunk], tokenizer, is_chat)
        for example, (head, prompt, responses, _) in zip(chunk, split, strict=True):
            if example.choices is None and not is_chat:
                responses = [[*response, _end_of_text(tokenizer)] for response in responses]
            prompt = _fitted(example.id, [*start, *head], prompt, responses, settings.max_length)
            questions.append(Question(example.id, prompt, responses, gold_of(example)))
    return questions


def in_chunks(examples: Sequence[Example]) -> Iterator[list[Example]]:
    """Yield successive examples whose texts are at most CHUNK_TEXTS, or a single one."""
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


def renderer(tokenizer: Tokenizer, settings: PromptSettings) -> Callable[[Example], Rendered]:
    if settings.format == "chat":
        return ChatTemplate(tokenizer, settings.chat or ChatSettings()).render
    return partial(render_plain, choice_format=settings.format)


def starting_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the ids that the tokenizer puts in front of a text: its BOS, or none."""
    bare, whole = (
        tokenizer(["a"], add_special_tokens=special)["input_ids"][0] for special in (False, True)
    )
    ends = (i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return list(whole[: next(ends, 0)])


class Split(NamedTuple):
    """A prompt and its responses, as tokenised together."""

    head: list[int]
    """What stays of the prompt where the rest is cut."""
    prompt: list[int]
    responses: list[list[int]]
    places: list[Characters]
    """In the text of the prompt and each response, the characters of the response's tokens."""


def tokenise(rendered: Sequence[Rendered], tokenizer: Tokenizer, has_control: bool) -> list[Split]:
    """Split each example where its responses begin.

    With `has_control`, what the template wrote may hold control tokens, and nothing else may.
    """
    if not tokenizer.is_fast:
        raise ArtifactError(
            "the model's tokenizer has no tokenizer.json, without which it cannot be seen where a "
            "response's tokens begin; convert it with transformers first"
        )
    texts = [each.prompt + text + each.end for each in rendered for text in each.responses or [""]]
    found = tokenizer(
        texts,
        add_special_tokens=False,
        return_offsets_mapping=True,
        split_special_tokens=not has_control,
    )
    encoded = zip(texts, zip(found["input_ids"], found["offset_mapping"], strict=True), strict=True)
    control = control_tokens(tokenizer) if has_control else {}
    split = []
    for each in rendered:
        border, joint = len(each.prompt), []
        for _ in each.responses or [""]:
            text, tokens = next(encoded)
            written = (*each.written, (border, len(text) - len(each.end)))
            joint.append(written_as_text(text, tokens, written, control, tokenizer))
        shared = _shared_tokens(joint, border)
        ids, offsets = joint[0]
        head = sum(end <= each.head for _, end in offsets[:shared]) if each.head else 0
        responses = [ids[shared:] for ids, _ in joint[: len(each.responses)]]
        places = [offsets[shared:] for _, offsets in joint[: len(each.responses)]]
        split.append(Split(ids[:head], ids[head:shared], responses, places))
    return split


def _shared_tokens(joint: Sequence[Encoded], border: int) -> int:
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
    """Return the prompt after its start, cut at its beginning to the room that is left."""
    longest = max(map(len, responses), default=0)
    room = max_length - longest - len(start)
    if room < 1:
        raise DataValidationError(
            f"example {name}: its response has {longest} tokens, "
            f"which leaves no room for the prompt in prompt.max_length = {max_length}; raise it in "
            "params.yaml, or shorten or remove the example"
        )
    return [*start, *prompt[-room:]]


def gold_of(example: Example) -> int | None:
    """Return the index of the right response among all; None where it is unknown."""
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
