"""A deep ensemble: models trained separately (Lakshminarayanan et al. 2017)."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from firstkd.ensembles.base import Ensemble
from firstkd.section import Name

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Deep(Ensemble):
    kind: Literal["deep"]
    of: Annotated[list[Name], Field(min_length=2)]

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self.of)

    def passes(
        self, networks: "Sequence[PreTrainedModel]", fitted: "Tensor | None", seed: int
    ) -> Iterator[int]:
        yield from range(len(networks))
