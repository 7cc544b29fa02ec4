"""Which tokens a signal of tokens keeps at each position."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from firstkd.errors import ConfigError
from firstkd.section import Section

if TYPE_CHECKING:
    from torch import Tensor

    from firstkd.signals.columns import Layout
    from firstkd.signals.knowledge import Knowledge
    from firstkd.signals.top_k import Position

MOST = 64
"""Tokens kept per position, at most."""


class Select(Section):
    kind: str
    is_sampled: ClassVar[bool] = False
    """Whether it keeps draws: drawing needs the whole distribution, and shares cannot be
    recalibrated as probabilities can."""
    is_ragged: ClassVar[bool] = True
    """Whether the number of tokens varies between positions."""

    @property
    def width(self) -> int:
        """Largest number of tokens per position."""
        raise NotImplementedError

    @property
    def setting(self) -> str:
        """Name of the setting that says how many are kept."""
        return "k"

    @property
    def facts(self) -> dict[str, Any]:
        """What readers of the store must know."""
        return {"top_k": self.width}

    def columns(self, vocabulary_size: int) -> "Layout":
        import torch

        from firstkd.signals.columns import KEPT, Column

        k, alone, pairs = self.width, int(self.is_ragged), 2 * int(self.is_ragged)
        columns = {"top_ids": Column(torch.uint16, k, alone)}
        if vocabulary_size > 2**16:
            columns["top_ids_high"] = Column(torch.uint8, (k + 1) // 2, pairs)
        columns["top_logprobs"] = Column(torch.float16, k, alone)
        if self.is_ragged:
            columns[KEPT] = Column(torch.uint8)
        return columns

    def kept(self, logprobs_RV: "Tensor", tail_nodes: int, uniform_R: "Tensor") -> "Knowledge":
        """Return what to keep of log-probabilities, overwriting them; `uniform_R` is in [0, 1)."""
        raise NotImplementedError

    def of_positions(
        self, found: "Sequence[tuple[Position, int]]", vocabulary_size: int
    ) -> "Knowledge":
        """Return what to keep of what others report at each position."""
        raise NotImplementedError


class TopK(Select):
    """The k most probable tokens (FIRST, sec. 3.1: five of them hold most of the mass)."""

    kind: Literal["top_k"]
    is_ragged: ClassVar[bool] = False
    k: Annotated[int, Field(ge=1, le=MOST)]

    @property
    def width(self) -> int:
        return self.k

    def kept(self, logprobs_RV: "Tensor", tail_nodes: int, uniform_R: "Tensor") -> "Knowledge":
        from firstkd.signals.top_k import knowledge_of

        return knowledge_of(logprobs_RV, self.k, tail_nodes)

    def of_positions(
        self, found: "Sequence[tuple[Position, int]]", vocabulary_size: int
    ) -> "Knowledge":
        from firstkd.signals.top_k import knowledge_of_positions

        return knowledge_of_positions(found, self.k, vocabulary_size)


class TopP(TopK):
    """The fewest most probable tokens that hold p of the mass, at most k (Holtzman et al. 2020)."""

    kind: Literal["top_p"]  # type: ignore[assignment]
    is_ragged: ClassVar[bool] = True
    p: Annotated[float, Field(gt=0, lt=1)]
    k: Annotated[int, Field(ge=1, le=MOST)] = 20

    def kept(self, logprobs_RV: "Tensor", tail_nodes: int, uniform_R: "Tensor") -> "Knowledge":
        from firstkd.signals.sparse import cut_at

        return cut_at(super().kept(logprobs_RV, tail_nodes, uniform_R), self.p)

    def of_positions(
        self, found: "Sequence[tuple[Position, int]]", vocabulary_size: int
    ) -> "Knowledge":
        from firstkd.signals.sparse import cut_at

        return cut_at(super().of_positions(found, vocabulary_size), self.p)


class Sample(Select):
    """Draws from the distribution, each weighted 1/draws: unbiased, even for the tail (Anshumann et
    al. 2025, arXiv 2503.16870).

    Draws are systematic (Kitagawa 1996): a token of probability q is drawn ⌊N q⌋ or ⌈N q⌉ times,
    N q on average as with independent draws, but with far less noise.
    """

    kind: Literal["sample"]
    is_sampled: ClassVar[bool] = True
    draws: Annotated[int, Field(ge=1, le=MOST)]

    @property
    def width(self) -> int:
        return self.draws

    @property
    def setting(self) -> str:
        return "draws"

    @property
    def facts(self) -> dict[str, Any]:
        return {**super().facts, "draws": self.draws}

    def kept(self, logprobs_RV: "Tensor", tail_nodes: int, uniform_R: "Tensor") -> "Knowledge":
        from firstkd.signals.sparse import drawn

        return drawn(logprobs_RV, self.draws, uniform_R)

    def of_positions(
        self, found: "Sequence[tuple[Position, int]]", vocabulary_size: int
    ) -> "Knowledge":
        raise ConfigError(
            f"select: kind {self.kind} draws from the whole distribution, but only the most "
            "probable tokens are available here; set { kind: top_k, k: 5 }"
        )


AnySelect = Annotated[TopK | TopP | Sample, Field(discriminator="kind")]
