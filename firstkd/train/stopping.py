"""How a training run learns that it should stop."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

LAUNCHED = "TORCHELASTIC_RUN_ID"
"""Set by torchrun in the processes that it starts."""


@contextmanager
def stopping(held: bool) -> Iterator[threading.Event]:
    """Yield an event; if `held`, SIGTERM and the first SIGINT set it and do nothing else meanwhile.

    SIGINT comes from Ctrl-C, and from systemd if it stops the schedule.
    """
    asked = threading.Event()
    if not held:
        yield asked
        return

    def interrupted(*_: object) -> None:
        if LAUNCHED not in os.environ:  # torchrun passes on what reached its processes already
            signal.signal(signal.SIGINT, before[signal.SIGINT])  # a second Ctrl-C means it
        asked.set()

    handlers = {signal.SIGTERM: lambda *_: asked.set(), signal.SIGINT: interrupted}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
