"""What an ensemble is: passes of one or several networks whose probabilities are averaged.

A kind of ensemble is its own settings, in a separate module. Free of torch, since settings are read
without it.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from firstkd.section import Section

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from firstkd.data.prompts import Question

Draws = Annotated[int, Field(ge=2)]


class Ensemble(Section):
    kind: str
    is_fitted: ClassVar[bool] = False
    """Whether training questions decide what it is."""

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that it is of."""
        raise NotImplementedError

    def check(self, networks: "Sequence[PreTrainedModel]") -> None:
        """Raise ConfigError for models that it cannot be of."""

    def fit(
        self,
        networks: "Sequence[PreTrainedModel]",
        questions: "Sequence[Question]",
        batch_size: int,
    ) -> "Tensor | None":
        """Return what training questions with a right choice say about it, if anything."""
        return None

    def passes(
        self, networks: "Sequence[PreTrainedModel]", fitted: "Tensor | None", seed: int
    ) -> Iterator[int]:
        """Yield, for each pass, which network is to make it, and keep it in that state meanwhile.

        The same seed gives the same passes. Afterwards the networks are as before.
        """
        raise NotImplementedError
