"""The base of what adapts, in rounds, to how a student answers calibration questions.

A round, between two steps, scores the questions once for everything that adapts
(firstkd/train/rounds.py).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class Adaptive:
    rounds: int
    """Rounds per training, evenly spaced; the first comes before the first step."""

    def adapt(self, scores_EC: "Tensor", right_E: "Tensor") -> None:
        """Adapt to E calibration questions of up to C choices, in float64.

        Scores are −inf where a question has no such choice; `right_E` are indices.
        """
        raise NotImplementedError

    def state(self) -> Any:
        """Return what `restore` needs from a checkpoint: lists and numbers, as JSON stores them."""
        raise NotImplementedError

    def restore(self, state: Any) -> None:
        raise NotImplementedError
