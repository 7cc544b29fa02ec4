"""Where the tokens of right responses lie in their texts.

Two tokenizers cut a text in different places. The text between cuts that both share is a chunk, and
each model gives its probability: the product over its tokens (ALM, Minixhofer et al. 2025, arXiv
2503.20083).
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from firstkd.data.control import Characters
from firstkd.data.examples import Example
from firstkd.data.prompts import gold_of, split_examples
from firstkd.data.settings import PromptSettings
from firstkd.data.tokenising import Tokenizer


class Spans(NamedTuple):
    """Positions in a response, counted in characters from the end of its text, so that it does not
    matter what a template puts in front of it: −3 is before the last three characters."""

    start: int
    """Position of its first character that is not white space; lower if its first token begins in
    the prompt."""
    ends: list[int]
    """Where each token ends, never decreasing; end markers, which are not text, are at 1."""


NOTHING = Spans(0, [])


def right_spans(
    examples: Sequence[Example], tokenizer: Tokenizer, settings: PromptSettings
) -> list[Spans]:
    """Return where the tokens of the examples' right responses lie, as `encode` cuts them.

    There are none if the answer is unknown. Raises as `encode` does.
    """
    is_chat = settings.format == "chat"
    found = []
    split = split_examples(examples, tokenizer, settings)
    for example, (texts, parts) in zip(examples, split, strict=True):
        if (gold := gold_of(example)) is None:
            found.append(NOTHING)
            continue
        spans = _spans(texts.prompt + texts.responses[gold], parts.places[gold])
        has_end = example.choices is None and not is_chat  # an id that is not part of the text
        found.append(Spans(spans.start, [*spans.ends, 1]) if has_end else spans)
    return found


def _spans(text: str, places: Characters) -> Spans:
    start = places[0][0]
    start += len(text[start:]) - len(text[start:].lstrip())
    ends = [min(end - len(text), 1) for _, end in places]
    for i in reversed(range(len(places) - 1)):
        if places[i][0] == places[i][1]:  # zero width: it belongs to what follows it
            ends[i] = ends[i + 1]
    return Spans(start - len(text), [*accumulate(ends, max)])


def chunks(ours: Spans, theirs: Spans) -> tuple[list[int], list[int]]:
    """Return the number of the chunk that each of our tokens and each of theirs is in.

    Chunks are the smallest pieces of text between shared cuts. −1 means none: tokens after the last
    shared cut, and those of the first chunk if the two responses begin at different places.
    """
    cuts = sorted({*ours.ends} & {*theirs.ends})
    first = 0 if ours.start == theirs.start else 1

    def number(end: int) -> int:
        chunk = bisect_left(cuts, end)
        return chunk if first <= chunk < len(cuts) else -1

    return [*map(number, ours.ends)], [*map(number, theirs.ends)]
