"""From rendered texts to token ids, cut where the responses begin."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from firstkd.data.control import Characters, Encoded, control_tokens, written_as_text
from firstkd.data.rendering import Rendered
from firstkd.errors import ArtifactError


class Tokenizer(Protocol):
    eos_token_id: int

    @property
    def is_fast(self) -> bool: ...

    def __call__(
        self,
        text: list[str],
        add_special_tokens: bool = ...,
        return_offsets_mapping: bool = ...,
        return_attention_mask: bool = ...,
        split_special_tokens: bool = ...,
    ) -> Any: ...


def starting_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the ids that the tokenizer puts in front of a text: its BOS, or none."""
    bare, whole = (
        tokenizer(["a"], add_special_tokens=special)["input_ids"][0] for special in (False, True)
    )
    ends = (i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return list(whole[: next(ends, 0)])


class Split(NamedTuple):
    """A prompt and its responses, tokenised together."""

    prompt: list[int]
    question: range
    """The prompt's tokens that may be cut, from the first one on; the template's may not."""
    responses: list[list[int]]
    places: list[Characters]
    """Character ranges of each response's tokens in the text of the prompt and the response."""

    @property
    def length(self) -> int:
        """Tokens of the prompt and its longest response."""
        return len(self.prompt) + max(map(len, self.responses), default=0)


def tokenise(rendered: Sequence[Rendered], tokenizer: Tokenizer, has_control: bool) -> list[Split]:
    """Split each example where its responses begin.

    With `has_control`, the template's text may contain control tokens; no other text may.
    """
    if not tokenizer.is_fast:
        raise ArtifactError(
            "the model's tokenizer has no tokenizer.json, which is needed to find where a "
            "response's tokens begin; convert it with transformers first"
        )
    texts = [each.prompt + text + each.end for each in rendered for text in each.responses or [""]]
    found = tokenizer(
        texts,
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,  # it takes a sixth of the time and is all ones
        split_special_tokens=not has_control,
    )
    encoded = zip(texts, zip(found["input_ids"], found["offset_mapping"], strict=True), strict=True)
    control = control_tokens(tokenizer) if has_control else {}
    split = []
    for each in rendered:
        border, joint = len(each.prompt), []
        for _ in each.responses or [""]:
            text, tokens = next(encoded)
            response = (border, len(text) - len(each.end))
            written = (*each.written, response)
            answers = (*each.answers, response) if each.is_answer else each.answers
            joint.append(written_as_text(text, tokens, written, answers, control, tokenizer))
        shared = _shared_tokens(joint, border)
        ids, offsets = joint[0]
        question = _tokens_of(each.question or (0, border), offsets[:shared])
        responses = [ids[shared:] for ids, _ in joint[: len(each.responses)]]
        places = [offsets[shared:] for _, offsets in joint[: len(each.responses)]]
        split.append(Split(ids[:shared], question, responses, places))
    return split


def _tokens_of(characters: tuple[int, int], offsets: Characters) -> range:
    """Return the tokens that overlap a range of characters."""
    first, last = characters
    before = sum(end <= first for _, end in offsets) if first else 0
    return range(before, len(offsets) - sum(start >= last for start, _ in offsets))


def _shared_tokens(joint: Sequence[Encoded], border: int) -> int:
    """Return how many leading tokens, all before character `border`, are the same in all texts."""
    (first, _), *others = joint
    shared = len(first)
    for ids, offsets in joint:
        end = len(ids)
        while end and offsets[end - 1][1] > border:
            end -= 1
        # a zero-width token, as for trimmed white space, belongs to what follows it
        while end and offsets[end - 1][0] >= border:
            end -= 1
        shared = min(shared, end)
    for ids, _ in others:
        while ids[:shared] != first[:shared]:
            shared -= 1
    return shared
