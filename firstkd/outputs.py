"""Standard outputs that neither a reader who leaves nor a narrow encoding can break."""

import io
import sys
from typing import Any, TextIO


class _Unbroken(io.FileIO):
    """An output whose reader may leave (`firstkd run | head`) without ending this process."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)


def tolerant(stream: TextIO) -> TextIO:
    """Return an output that shows `?` for what its encoding does not have."""
    buffer = io.BufferedWriter(_Unbroken(stream.fileno(), "w", closefd=False))
    shows_lines = stream.isatty() or stream is sys.stderr
    return io.TextIOWrapper(buffer, stream.encoding, "replace", line_buffering=shows_lines)
