"""Known tics stay out of the pages, the settings and the prose in the code.

A pattern, and what a native writer would say instead. Vale's packages download their program from
elsewhere when they are installed, so this takes its place.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny import REPOSITORY

TICS = {
    r"(?<![Tt]here )\b(?:is|are|was) no (?!(?:longer|more|less|worse|reason)\b)": "is not",
    r"\bmend(?:s|ed|ing)?\b": "fix",
    r"\banew\b": "again",
    r"\bshall\b": "should, must, or the plain verb",
    r"\b(?:is|are|was|were|gets) told (?!from\b)": "name who tells; or: is reported for, should",
    r"\bgoes? first\b": "takes precedence",
    r"\b[Gg]iven again\b": "repeat it",
    r"\bwhich none\b": "which nobody; or turn the sentence round",
    r"\bsuffices?\b": "is enough",
    r"\b[Oo]f one's own\b": "your own, or a separate",
    r"\b(?:a|an) \w+ of (?:its|their) own\b": "its own ...",
    r"\bWord of it\b": "notifications",
    r"\bmeasured anew\b": "measured again",
    r"\bso many\b(?! \w+ that)": "this many, or at most N",
}
OPENS_WITH_OF = re.compile(r"Of (?:the |a |an |each |every |those|which|\w+)")

PROSE = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    REPOSITORY / "CHANGELOG.md",
    REPOSITORY / "SECURITY.md",
    REPOSITORY / "params.yaml",
    *sorted((REPOSITORY / "docs").glob("*.md")),
    *sorted((REPOSITORY / "infra").glob("*.md")),
    *sorted((REPOSITORY / "examples").glob("*.yaml")),
]
CODE = sorted(
    path for folder in ("firstkd", "tasks", "flows") for path in (REPOSITORY / folder).rglob("*.py")
)


def strings_and_comments(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and text of each string and comment; f-strings by their literal parts."""
    source = path.read_text(encoding="utf-8")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            yield token.start[0], token.string


def found_in(text: str) -> list[str]:
    return [
        f"“{match[0]}”: say {better}"
        for tic, better in TICS.items()
        for match in re.finditer(tic, text)
    ]


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.name)
def test_pages_have_no_known_tic(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert not found_in(text)


def test_code_has_no_known_tic() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{line}: {problem}"
        for path in CODE
        for line, text in strings_and_comments(path)
        for problem in found_in(text)
    ]
    assert not found


def test_docstrings_do_not_open_with_of() -> None:
    found = []
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                text = node.value.value
                if isinstance(text, str) and OPENS_WITH_OF.match(text.lstrip()):
                    found.append(f"{path.relative_to(REPOSITORY)}:{node.lineno}: {text[:60]}")
    assert not found


def test_the_linter_finds_what_it_should() -> None:
    assert found_in("It is no key.") and found_in("each gets a row of its own")
    assert not found_in("There is no champion. It is no longer there.")
