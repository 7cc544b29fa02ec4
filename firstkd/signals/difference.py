"""Difference sampling: learn from what a large model finds much likelier than a small one does.

MiniPLM: Gu et al. 2025, arXiv 2410.17215, sec. 2.2. What both find likely is easy, and what neither
does is noise; the difference is what is worth learning.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from firstkd.data.examples import Example, example_key
from firstkd.section import Name, Section

if TYPE_CHECKING:
    from torch import Tensor

    from firstkd.signals.base import Signal
    from firstkd.signals.store import SignalStore


class Difference(Section):
    """Keeps the answered examples with the largest log p(y | x) − log p_ref(y | x) per character of
    the response y, so that length does not matter and the two tokenizers may differ.

    Examples without an answer are not ranked: all of them are kept.
    """

    of: Name
    """A stored signal of the large model's tokens, p."""
    less: Name
    """The same for the small model, p_ref."""
    share: Annotated[float, Field(gt=0, lt=1)]
    """Share of the answered examples to keep."""

    @property
    def signals(self) -> tuple[str, str]:
        return self.of, self.less

    def misfits(self, signals: "Mapping[str, Signal]") -> Iterator[tuple[str, str]]:
        """Yield each key that does not fit, and why."""
        for key, name in (("of", self.of), ("less", self.less)):
            signal = signals[name]
            if signal.decides != "token" or signal.is_live or signal.is_sampled:
                yield (
                    key,
                    f"signals.{name} does not store the probability of each answer's tokens; name "
                    "a stored signal of tokens that is not sampled",
                )
        if self.of == self.less:
            yield "less", f"{self.less!r} is also `of`, so there is no difference; name another"

    def kept(
        self, examples: Sequence[Example], large: "SignalStore", small: "SignalStore"
    ) -> list[Example]:
        """Return the examples to learn from, in their order.

        Raises ArtifactError for a store without these examples or their tokens' probabilities.
        """
        answered = [i for i, example in enumerate(examples) if example.response]
        chosen = [examples[i] for i in answered]
        large_E, small_E = (response_logprobs(store, chosen) for store in (large, small))
        characters_E = large_E.new_tensor([len(example.response) for example in chosen])
        difference_E = (large_E - small_E) / characters_E
        count = math.ceil(round(self.share * len(answered), 6))
        best = difference_E.argsort(descending=True, stable=True)[:count].tolist()
        kept = {answered[i] for i in best}
        return [e for i, e in enumerate(examples) if i in kept or not e.response]


def response_logprobs(store: "SignalStore", examples: Sequence[Example]) -> "Tensor":
    """Return [E], in float64, the log-probability of each example's right response."""
    import torch

    store.require("gold_logprob")
    ids = [example.id for example in examples]
    records = store.of_examples(store.positions([*map(example_key, examples)], ids))
    example_R = torch.arange(len(examples)).repeat_interleave(records.counts.long())
    logprobs_R = records.columns["gold_logprob"].double()
    return logprobs_R.new_zeros(len(examples)).index_add(0, example_R, logprobs_R)
