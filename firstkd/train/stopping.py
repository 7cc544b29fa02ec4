"""How a training run learns that it should stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def sigterm(held: bool) -> Iterator[threading.Event]:
    """Yield an event; if `held`, SIGTERM sets it and does nothing else meanwhile."""
    asked = threading.Event()
    if not held:
        yield asked
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)
