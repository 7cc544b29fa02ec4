"""Imports without the optional packages that libraries pull in."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unimportable(name: str) -> Iterator[None]:
    """Make `import name` fail in the body, for libraries that import it if it is installed."""
    imported = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]  # documented by the import system
    try:
        yield
    finally:
        del sys.modules[name]
        if imported:
            sys.modules[name] = imported
