"""The kinds of starts, one module each."""

from typing import Annotated

from pydantic import Field

from firstkd.models.init.average import AverageInit
from firstkd.models.init.copy import CopyInit
from firstkd.models.init.narrow import NarrowInit
from firstkd.models.init.prune import PruneInit
from firstkd.models.init.quantise import QuantiseInit
from firstkd.models.init.scratch import ScratchInit
from firstkd.models.init.server import ServerInit
from firstkd.models.init.source import SourceInit

KINDS = (
    SourceInit,
    CopyInit,
    PruneInit,
    NarrowInit,
    QuantiseInit,
    ScratchInit,
    AverageInit,
    ServerInit,
)

AnyInit = Annotated[
    SourceInit
    | CopyInit
    | PruneInit
    | NarrowInit
    | QuantiseInit
    | ScratchInit
    | AverageInit
    | ServerInit,
    Field(discriminator="kind"),
]
