"""The kinds of exports, one module each."""

from typing import Annotated

from pydantic import Field

from firstkd.exports.gguf import GgufExport
from firstkd.exports.onnx import OnnxExport

KINDS = (GgufExport, OnnxExport)

AnyExport = Annotated[GgufExport | OnnxExport, Field(discriminator="kind")]
