"""Control tokens: only a chat template may write them; in anybody else's text they stay text."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

Characters = list[tuple[int, int]]
"""For each token, its characters in the text: the first, and the one after the last."""
Encoded = tuple[list[int], Characters]
"""Token ids, and the characters of each."""

MARKER = re.compile(r"[^\w\s].*\w.*[^\w\s]", re.DOTALL)
ANCHOR = "\ue002firstkd\ue002"
"""Text that nobody would write."""


def control_tokens(tokenizer: Any) -> dict[int, Any]:
    """Return the added tokens that are not plain text, by id.

    Those are the special ones, and others in brackets or bars: Qwen 3's `<think>` and
    DeepSeek's `<｜User｜>` are not special. Runs of spaces and words that somebody added are text.
    """
    return {
        i: token
        for i, token in tokenizer.added_tokens_decoder.items()
        if token.special or MARKER.fullmatch(token.content)
    }


def written_as_text(
    text: str,
    tokens: Encoded,
    written: Sequence[tuple[int, int]],
    answers: Sequence[tuple[int, int]],
    control: Mapping[int, Any],
    tokenizer: Any,
) -> Encoded:
    """Tokenise what the template did not write as if there were no control tokens.

    `written` are the character ranges of that text. In those that are `answers`, only special
    tokens become text: a model marks its thoughts with its own tokens (`<think>`). Tokenizers split
    a text at control tokens, so only the stretches that lie between two genuine ones and contain a
    written one are tokenised again.
    """
    ids, offsets = tokens
    places = [n for n, i in enumerate(ids) if i in control]
    starts = {n: max(text.find(control[ids[n]].content, offsets[n][0]), 0) for n in places}
    theirs = {
        n
        for n, start in starts.items()
        if any(a <= start < b for a, b in written)
        and (control[ids[n]].special or not any(a <= start < b for a, b in answers))
    }
    if not theirs:
        return tokens
    spelled: Encoded = ([], [])
    edges = [-1, *(n for n in places if n not in theirs), len(ids)]
    for left, right in pairwise(edges):
        stretch = (ids[left + 1 : right], offsets[left + 1 : right])
        if not theirs.isdisjoint(range(left + 1, right)):
            first, last = 0, len(text)
            if left >= 0:
                first = offsets[left][1]
                if control[ids[left]].rstrip:  # it absorbs the white space after it
                    first += len(text[first:]) - len(text[first:].lstrip())
            if right < len(ids):
                last = offsets[right][0]
                if control[ids[right]].lstrip:
                    last = max(first, len(text[:last].rstrip()))
            stretch = _plain(text, first, last, tokenizer)
        spelled[0].extend([*stretch[0], *ids[right : right + 1]])
        spelled[1].extend([*stretch[1], *offsets[right : right + 1]])
    return spelled


def _plain(text: str, first: int, last: int, tokenizer: Any) -> Encoded:
    backend, anchor = _without_control(tokenizer)
    # some tokenizers treat the start of a text differently from what follows a control token
    lead = ANCHOR if first else ""
    found = backend.encode(lead + text[first:last], add_special_tokens=False)
    shift = first - len(lead)
    kept = [n for n, i in enumerate(found.ids) if i != anchor]
    places = [(found.offsets[n][0] + shift, found.offsets[n][1] + shift) for n in kept]
    return [found.ids[n] for n in kept], places


@lru_cache(maxsize=8)
def _without_control(tokenizer: Any) -> tuple[Backend, int | None]:
    """Return a tokenizer that reads control tokens except the anchor as text, and that one's id."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    control = control_tokens(tokenizer)
    for token in state["added_tokens"]:
        token["special"] = token["id"] in control
    backend = Backend.from_str(json.dumps({**state, "truncation": None, "padding": None}))
    backend.encode_special_tokens = True
    backend.add_tokens([AddedToken(ANCHOR, normalized=False)])
    return backend, backend.token_to_id(ANCHOR)
