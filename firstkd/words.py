"""Numbers in messages."""


def counted(number: int, noun: str) -> str:
    """Return e.g. `1 question` or `2,345 questions`; for nouns with a plural in -s."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
