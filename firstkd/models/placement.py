"""Where to keep the weights of models that only run, to be captured, measured or checked.

The kind is a machine setting, on which no stage depends: a model computes the same with the same
weights, wherever they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from firstkd.section import Precision, Section

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from transformers import PreTrainedModel

    from firstkd.train.distributed import Ranks

Gigabytes = Annotated[float, Field(gt=0)]
"""10⁹ bytes."""


class Placement(Section):
    kind: str
    captures_in_all: ClassVar[bool]
    """Whether each of `machine.processes` captures part of a signal."""
    measures_in_all: ClassVar[bool] = False
    """Whether all of them must run while a model is measured."""

    def running(
        self, folder: Path, precision: Precision, ranks: "Ranks"
    ) -> "AbstractContextManager[PreTrainedModel]":
        """Load a model that each process may run in the body as often as it likes.

        Raises ArtifactError as `load_model` does, and OutOfMemoryError.
        """
        raise NotImplementedError


class Whole(Placement):
    """The whole model on each process's device."""

    kind: Literal["whole"]
    captures_in_all: ClassVar[bool] = True

    @contextmanager
    def running(
        self, folder: Path, precision: Precision, ranks: "Ranks"
    ) -> "Iterator[PreTrainedModel]":
        from firstkd.memory import memory_explained
        from firstkd.models.folders import load_model

        remedy = "set machine.placement to { kind: spread }, or to { kind: sharded }"
        with memory_explained(f"while loading {folder}", remedy):
            model = load_model(folder, precision)
        yield model


class Spread(Placement):
    """Layer by layer over the devices of one process, then the host's memory, then disk."""

    kind: Literal["spread"]
    captures_in_all: ClassVar[bool] = False

    device_gb: Gigabytes | None = None
    """Memory limit for weights on each device; null for nine tenths of what is free."""
    host_gb: Gigabytes | None = None
    """The same for the host's memory. What does not fit is read from disk in every pass."""

    @contextmanager
    def running(
        self, folder: Path, precision: Precision, ranks: "Ranks"
    ) -> "Iterator[PreTrainedModel]":
        from firstkd.models.spread import load_spread

        yield load_spread(folder, precision, self.device_gb, self.host_gb)


class Sharded(Placement):
    """Part of each layer in each process; a single process spreads the model instead."""

    kind: Literal["sharded"]
    captures_in_all: ClassVar[bool] = True
    measures_in_all: ClassVar[bool] = True

    def running(
        self, folder: Path, precision: Precision, ranks: "Ranks"
    ) -> "AbstractContextManager[PreTrainedModel]":
        from firstkd.models.sharded import sharded

        if ranks.world_size == 1:
            return Spread(kind="spread").running(folder, precision, ranks)
        return sharded(folder, precision, ranks)


AnyPlacement = Annotated[Whole | Spread | Sharded, Field(discriminator="kind")]
WHOLE = Whole(kind="whole")
