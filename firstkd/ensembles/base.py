"""What an ensemble is: passes of one or several networks whose probabilities are averaged.

Each kind of ensemble is a settings class in a separate module. This module does not import torch,
since settings are read without it.
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
    """Whether it is fitted on training questions."""

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that it is made of."""
        raise NotImplementedError

    def check(self, networks: "Sequence[PreTrainedModel]") -> None:
        """Raise ConfigError for models that it cannot be made of."""

    def fit(
        self,
        networks: "Sequence[PreTrainedModel]",
        questions: "Sequence[Question]",
        batch_size: int,
    ) -> "Tensor | None":
        """Return what is fitted on training questions with a right choice, if anything."""
        return None

    def passes(
        self, networks: "Sequence[PreTrainedModel]", fitted: "Tensor | None", seed: int
    ) -> Iterator[int]:
        """Yield, for each pass, the index of the network to run, keeping it in that pass's state.

        The same seed gives the same passes. The networks are restored afterwards.
        """
        raise NotImplementedError
