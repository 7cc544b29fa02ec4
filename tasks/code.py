"""Which of the project's modules a module depends on, from its imports."""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from firstkd.files import sha256_of

CODE = Path(__file__).parents[1]
"""The folder that contains firstkd/ and tasks/."""
PACKAGES = ("firstkd", "tasks")
ASKING = ("firstkd/data", "firstkd/openai", "firstkd/signals")
"""What decides what a server is asked, and what is kept of its answers."""
NOT_RESULTS = {
    "firstkd/errors.py",
    "firstkd/files.py",
    "firstkd/lineage.py",
    "firstkd/section.py",
    "tasks/code.py",
    "tasks/costs.py",
    "tasks/dvc_stage.py",
    "tasks/measuring_graph.py",
    "tasks/graph.py",
    "tasks/layout.py",
    "tasks/signal_graph.py",
    "tasks/stage.py",
}
"""Changes to these show in errors, paths or the graph itself, not in results."""


def code_of(modules: Iterable[str], without: Iterable[str] = ()) -> list[str]:
    """Return the files of these modules and of all that they import, directly or indirectly.

    Settings modules are left out: their effect is in the settings themselves. So are modules that
    are imported only through `without`.
    """
    found: set[str] = set()
    waiting = {_file(module) for module in modules}
    excluded = {_file(module) for module in without}
    while waiting:
        file = waiting.pop()
        if file is None or file in found or file in excluded or _is_no_result(file):
            continue
        found.add(file)
        waiting |= _imported(file)
    return sorted(found)


def code_sha256(packages: Iterable[str] = PACKAGES) -> str:
    """Return the hash of all modules: no version of the code resumes what another one began."""
    digest = hashlib.sha256()
    for package in packages:
        for file in sorted((CODE / package).rglob("*.py")):
            digest.update(f"{sha256_of(file)}  {file.relative_to(CODE).as_posix()}\n".encode())
    return digest.hexdigest()


def _is_no_result(file: str) -> bool:
    return file in NOT_RESULTS or file.endswith("settings.py")


def _file(module: str) -> str | None:
    """Return a module's file, relative to CODE; None for modules outside the project."""
    if module.partition(".")[0] not in PACKAGES:
        return None
    path = module.replace(".", "/")
    for file in (f"{path}.py", f"{path}/__init__.py"):
        if (CODE / file).exists():
            return file
    return None


@cache
def _imported(file: str) -> frozenset[str | None]:
    names: set[str] = set()
    for node in _executed(ast.parse((CODE / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(_file(name) for name in names)


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes except those that only type checkers see."""
    yield node
    for child in ast.iter_child_nodes(node):
        types_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not types_only:
            yield from _executed(child)
