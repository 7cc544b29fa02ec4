"""The kinds of export, one module each."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from firstkd.exports.gguf import GgufExport
from firstkd.exports.onnx import OnnxExport
from firstkd.exports.safetensors import SafetensorsExport
from firstkd.section import listed

KINDS = (GgufExport, OnnxExport, SafetensorsExport)

AnyExport = Annotated[GgufExport | OnnxExport | SafetensorsExport, Field(discriminator="kind")]


def check_exports(
    exports: Mapping[str, AnyExport], models: set[str], measured: set[str], served: set[str]
) -> None:
    """Raise ValueError, naming the key, for an export of a model without temperature or weights.

    `measured` are the evaluated models, `served` those behind servers.
    """
    for name, export in exports.items():
        if name in models:
            raise ValueError(f"exports.{name}: {name!r} is the name of a model; choose another")
        if export.of not in measured:
            raise ValueError(
                f"exports.{name}.of: {export.of!r} is not evaluated, so it has no temperature to "
                f"export; add it to evaluate.models or choose one of them: {listed(measured)}"
            )
        if export.of in served:
            raise ValueError(
                f"exports.{name}.of: {export.of!r} is behind a server: there is nothing to export"
            )
