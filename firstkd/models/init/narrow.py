"""A model that starts as another with fewer feed-forward neurons, which stand in for all.

This is width pruning: the layers stay, and so do the places and width of the hidden states.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from firstkd.errors import ConfigError
from firstkd.models.init.smaller import SmallerInit
from firstkd.section import Positive

if TYPE_CHECKING:
    from torch import Tensor

    from firstkd.data.prompts import Question


class NarrowInit(SmallerInit):
    kind: Literal["narrow"]
    # in float32, 30 layers that sum over fewer neurons, in another order, differ by 3·10⁻⁶
    reordering: ClassVar[float] = 2e-5

    intermediate_size: Positive
    """Number of feed-forward neurons that each layer keeps."""
    examples: Positive = 2048
    """Training examples for fitting them to stand in for all, the labelled ones first; the examples
    should have many more tokens than a layer has neurons."""

    def check(self, model: Any) -> None:
        from firstkd.models.neurons import feed_forwards

        feed_forwards(model)
        present = model.config.intermediate_size
        if self.intermediate_size > present:
            raise ConfigError(
                f"intermediate_size: {self.intermediate_size}, but {self.of} has {present}; keep "
                f"at most {present}"
            )

    def cut(
        self, model: Any, questions: Sequence["Question"], probe_BL: "Tensor"
    ) -> tuple["Tensor", dict[str, Any]]:
        from firstkd.models.neurons import (
            choose_neurons,
            keep_neurons,
            logits_of_neurons,
            refit_neurons,
        )

        self.check(model)
        answered = [question.gold_only() for question in questions]
        chosen = choose_neurons(
            model, self.intermediate_size, answered, self.micro_batch_size, self.micro_batch_tokens
        )
        refit_neurons(model, chosen)
        kept = [layer.kept_K for layer in chosen]
        expected = logits_of_neurons(model, kept, probe_BL)
        keep_neurons(model, kept)
        return expected, {"unexplained_share_of_output": [layer.unexplained for layer in chosen]}
