"""Where the weights of models that only run are kept: those captured, measured or checked.

One kind is a setting of the machine, on which no stage depends: whatever it is, a model computes
the same with the same weights.
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
    """Whether each of `machine.processes` captures a part of a signal."""
    measures_in_all: ClassVar[bool] = False
    """Whether a model is there to be measured only while all of them run."""

    def running(
        self, folder: Path, precision: Precision, ranks: "Ranks"
    ) -> "AbstractContextManager[PreTrainedModel]":
        """Load a model to be run in the body, by each process as often as it likes.

        Raises ArtifactError as `load_model` does, and OutOfMemoryError.
        """
        raise NotImplementedError


class Whole(Placement):
    """On the device of each process."""

    kind: Literal["whole"]
    captures_in_all: ClassVar[bool] = True

    @contextmanager
    def running(
        self, folder: Path, precision: Precision, ranks: "Ranks"
    ) -> "Iterator[PreTrainedModel]":
        from firstkd.memory import memory_explained
        from firstkd.models.folders import load_model

        remedy = "set machine.placement to { kind: spread }, or to { kind: sharded }"
        with memory_explained(f"while {folder} was loaded", remedy):
            model = load_model(folder, precision)
        yield model


class Spread(Placement):
    """Over the devices of one process, then the host's memory, then disk, layer by layer."""

    kind: Literal["spread"]
    captures_in_all: ClassVar[bool] = False

    device_gb: Gigabytes | None = None
    """The most that weights take on each device; null for nine tenths of what is free."""
    host_gb: Gigabytes | None = None
    """Likewise in the host's memory. What does not fit is read from disk in every pass."""

    @contextmanager
    def running(
        self, folder: Path, precision: Precision, ranks: "Ranks"
    ) -> "Iterator[PreTrainedModel]":
        from firstkd.models.spread import load_spread

        yield load_spread(folder, precision, self.device_gb, self.host_gb)


class Sharded(Placement):
    """A part of each layer in each process; one process alone spreads it."""

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
