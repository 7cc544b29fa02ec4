"""One text policy for every path into a model: data sets, served questions and their logs."""

import unicodedata


def clean(text: str) -> str:
    """Return the text as models see it: stripped of surrounding white space, otherwise unchanged.

    Line breaks inside are kept because they separate a passage from its question. Raises
    ValueError for a lone surrogate (`"\\ud83d"` in JSON), which cannot be encoded as UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"half a character, {text[error.start]!a}, at position {error.start} "
            "(a lone surrogate; the text was probably cut inside an emoji)"
        ) from error
    return text.strip()


def is_blank(text: str) -> bool:
    """Whether a text is invisible: only white space and zero-width characters."""
    return all(each.isspace() or unicodedata.category(each) == "Cf" for each in text)
