"""A model that starts as another without the feed-forward neurons that matter least.

This is width pruning: the layers stay, and so do the hidden states' places and width.
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
    # in float32, 30 layers that sum over fewer neurons in another order differ by 3·10⁻⁶
    reordering: ClassVar[float] = 2e-5

    intermediate_size: Positive
    """Number of feed-forward neurons that each layer keeps."""

    def check(self, model: Any) -> None:
        from firstkd.models.neurons import feed_forwards

        feed_forwards(model)
        present = model.config.intermediate_size
        if self.intermediate_size > present:
            raise ConfigError(
                f"intermediate_size: {self.intermediate_size}, but {self.of} has {present}; keep "
                f"{present} at most"
            )

    def cut(
        self, model: Any, questions: Sequence["Question"], probe_BL: "Tensor"
    ) -> tuple["Tensor", dict[str, Any]]:
        from firstkd.models.neurons import keep_neurons, logits_of_neurons, neuron_influence

        self.check(model)
        answered = [question.gold_only() for question in questions]
        influence = neuron_influence(
            model, answered, self.micro_batch_size, self.micro_batch_tokens
        )
        kept = [layer.topk(self.intermediate_size).indices.sort().values for layer in influence]
        expected = logits_of_neurons(model, kept, probe_BL)
        keep_neurons(model, kept)
        share = [
            float(layer[k].sum() / layer.sum()) for layer, k in zip(influence, kept, strict=True)
        ]
        return expected, {"kept_share_of_influence": share}
