"""Passages that several questions are about: what must not straddle splits."""

import hashlib
from collections.abc import Sequence

from firstkd.data.examples import normalise

LONG_PASSAGE = 200  # characters: what is shorter is a phrase or an instruction


def is_long(text: str) -> bool:
    return len(text) >= LONG_PASSAGE


def passage_of(prompt: str, choices: Sequence[str] | None) -> str | None:
    """Return the passage that a prompt holds, if it holds one of at least LONG_PASSAGE characters.

    It stands above a question's last line; of open text, it is the longest line.
    """
    if choices is None:
        passage = max(prompt.split("\n"), key=len)
    else:
        passage, _, _ = prompt.rpartition("\n")
    return passage if is_long(passage) else None


def passage_group(passage: str) -> str:
    """Return the group of a passage, the same in every data set."""
    return f"passage/{hashlib.sha256(normalise(passage).encode()).hexdigest()[:16]}"
