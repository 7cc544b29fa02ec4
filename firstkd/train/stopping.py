"""How a training run learns that it should stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from firstkd.train.distributed import Ranks


@contextmanager
def stopping(held: bool, ranks: Ranks) -> Iterator[threading.Event]:
    """Yield an event; if `held`, SIGTERM and SIGINT set it and do nothing else meanwhile.

    SIGINT comes from Ctrl-C, and from systemd when it stops the schedule. A second one interrupts a
    single process; several processes may also get one from torchrun, which means the same stop.
    """
    asked = threading.Event()
    if not held:
        yield asked
        return

    def interrupted(*_: object) -> None:
        if ranks.world_size == 1:
            signal.signal(signal.SIGINT, before[signal.SIGINT])
        asked.set()

    handlers = {signal.SIGTERM: lambda *_: asked.set(), signal.SIGINT: interrupted}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
