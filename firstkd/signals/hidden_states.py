"""The signal `hidden_states`: what a model makes of each token on the way through its layers.

H numbers a token and layer are too many to store, so its model always runs in the training.
"""

from typing import TYPE_CHECKING, ClassVar, Literal

from firstkd.signals.base import LiveSignal, Pairs

if TYPE_CHECKING:
    from firstkd.signals.live import Running
    from firstkd.signals.store import Layout
    from firstkd.signals.target import Source


class HiddenStates(LiveSignal):
    kind: Literal["hidden_states"]
    decides: ClassVar[str] = "state"

    live: Literal[True] = True

    @property
    def is_live(self) -> bool:
        return True

    def layout(self, vocabulary_size: int) -> "Layout":
        return {}

    def source(self, watched: "Running", pairs: Pairs) -> "Source":
        from firstkd.signals.live import LiveStates

        return LiveStates(watched, tuple(pairs))
