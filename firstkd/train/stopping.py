"""How a training hears that it is to stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def sigterm(held: bool) -> Iterator[threading.Event]:
    """Yield what is set by SIGTERM, which meanwhile does nothing else; only where it is `held`."""
    asked = threading.Event()
    if not held:
        yield asked
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)
