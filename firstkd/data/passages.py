"""Passages that several questions share, which must not straddle splits."""

import hashlib
from collections.abc import Sequence

from firstkd.data.examples import normalise

LONG_PASSAGE = 200  # characters; anything shorter is a phrase or an instruction


def is_long(text: str) -> bool:
    return len(text) >= LONG_PASSAGE


def passage_of(prompt: str, choices: Sequence[str] | None) -> str | None:
    """Return the passage in a prompt, or None if it has fewer than LONG_PASSAGE characters.

    In a question with choices it is all but the last line; in open text, the longest line.
    """
    if choices is None:
        passage = max(prompt.split("\n"), key=len)
    else:
        passage, _, _ = prompt.rpartition("\n")
    return passage if is_long(passage) else None


def passage_group(passage: str) -> str:
    """Return a passage's group, which is the same in every data set."""
    return f"passage/{hashlib.sha256(normalise(passage).encode()).hexdigest()[:16]}"
