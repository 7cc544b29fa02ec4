"""Standard output streams that survive a closed pipe and a narrow encoding."""

import io
import sys
from typing import Any, TextIO


class _Unbroken(io.FileIO):
    """An output whose reader may quit (`firstkd run | head`) without ending this process."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)


def tolerant(stream: TextIO) -> TextIO:
    """Return an output that writes `?` for characters that its encoding lacks."""
    buffer = io.BufferedWriter(_Unbroken(stream.fileno(), "w", closefd=False))
    shows_lines = stream.isatty() or stream is sys.stderr
    return io.TextIOWrapper(buffer, stream.encoding, "replace", line_buffering=shows_lines)
