"""What adapts between steps to how a student answers calibration questions, in rounds.

A round scores the questions once (firstkd/train/rounds.py); whatever adapts gets the scores.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class Adaptive:
    rounds: int
    """Rounds in a training, evenly spaced, the first before its first step."""

    def adapt(self, scores_EC: "Tensor", right_E: "Tensor") -> None:
        """Adapt to E calibration questions of up to C choices, in float64.

        Scores are −inf where a question has no such choice; `right_E` are indices.
        """
        raise NotImplementedError

    def state(self) -> Any:
        """Return, for a checkpoint, what `restore` needs: lists and numbers, which JSON keeps."""
        raise NotImplementedError

    def restore(self, state: Any) -> None:
        raise NotImplementedError
