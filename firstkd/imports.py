"""Imports without what nobody asked for."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unimportable(name: str) -> Iterator[None]:
    """Make `import name` fail inside, for libraries that import it where they find it."""
    imported = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]  # which the import system documents
    try:
        yield
    finally:
        del sys.modules[name]
        if imported:
            sys.modules[name] = imported
