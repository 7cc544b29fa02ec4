"""What README.md, docs/ and infra/ tell people to type."""

import re
import shlex
from pathlib import Path

from tests.tiny import REPOSITORY

PAGES = sorted(
    [
        REPOSITORY / "README.md",
        *(REPOSITORY / "docs").glob("*.md"),
        *(REPOSITORY / "infra").glob("*.md"),
    ]
)
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = ("firstkd", "make", "dvc", "mlflow", "prefect", "python -m", "torchrun")
INLINE = re.compile(rf"`((?:{'|'.join(PROGRAMS)}) [^`]+)`")


def fenced(page: Path) -> list[tuple[str, str]]:
    """Language and text of each of a page's blocks."""
    return FENCE.findall(page.read_text(encoding="utf-8"))


def commands_of(page: Path) -> list[str]:
    """A page's commands, each once: those of its shell blocks in order, then those in its text."""
    found = []
    for language, block in fenced(page):
        if language == "sh":
            found += whole_commands(block)
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    found += [command for command in INLINE.findall(text) if "…" not in command]
    return list(dict.fromkeys(command.strip() for command in found if shlex.split(command, True)))


def whole_commands(block: str) -> list[str]:
    """A shell block's commands, those over several lines as one."""
    found, open_line = [], ""
    for line in block.replace("\\\n", " ").splitlines():
        open_line += line + "\n"
        try:
            shlex.split(open_line, comments=True)
        except ValueError:  # a quotation that goes on in the next line
            continue
        found.append(open_line)
        open_line = ""
    assert not open_line, f"no closing quotation: {open_line}"
    return found
