"""The traffic log: what was asked and answered, for next week's training. Off by default."""

import asyncio
import contextlib
import hashlib
import logging
import os
import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from firstkd.data.examples import Example
from firstkd.errors import PipelineError
from firstkd.files import atomic_file
from firstkd.serving.settings import TrafficSettings
from firstkd.serving.wire import Told
from firstkd.words import counted

FLUSH_SECONDS = 30.0
"""Seconds after which rows are written even if they do not fill a file."""
FIELDS = {
    "time": pa.string(),
    "question": pa.string(),
    "choices": pa.list_(pa.string()),
    "route": pa.string(),
    "answer": pa.string(),
    "confidence": pa.float64(),
    "by": pa.string(),
    "reason": pa.string(),
    "guess": pa.string(),
    "guess_confidence": pa.float64(),
}

log = logging.getLogger(__name__)


class TrafficLog:
    """Writes rows to Parquet files in a folder and deletes the oldest if there are too many.

    Fields are hashed with a key that ends with the server: equal texts can be counted, but not
    guessed by trying texts, nor compared with what another server has logged.
    """

    def __init__(self, folder: Path, settings: TrafficSettings) -> None:
        self.folder, self.settings = folder, settings
        self._key, self._rows = secrets.token_bytes(32), list[dict[str, Any]]()
        self._full = asyncio.Event()
        names = [name for name in FIELDS if name not in settings.drop]
        self._schema = pa.schema([(name, FIELDS[name]) for name in names])
        hashed = {b"hashed": ",".join(settings.hash).encode()}
        self._schema = self._schema.with_metadata(hashed)

    def add(self, examples: Sequence[Example], told: Sequence[Told]) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        for example, each in zip(examples, told, strict=True):
            asked = {"time": now, "question": example.prompt, "choices": example.choices}
            row = {**each.model_dump(), **asked}
            self._rows.append({name: self._hidden(name, row[name]) for name in self._schema.names})
        if len(self._rows) >= self.settings.rows:
            self._full.set()

    def _hidden(self, name: str, value: Any) -> Any:
        if name not in self.settings.hash or value is None:
            return value
        if isinstance(value, tuple):
            return [self._hidden(name, each) for each in value]
        return hashlib.blake2b(value.encode(), key=self._key, digest_size=16).hexdigest()

    async def flush(self) -> None:
        """Write the rows collected; those that cannot be written are lost, with a warning."""
        rows, self._rows = self._rows, []
        if not rows:
            return
        try:
            await asyncio.to_thread(self._write, rows)
        except (OSError, PipelineError, pa.ArrowException) as error:
            lost = counted(len(rows), "row")
            log.warning("%s of traffic could not be written: %s", lost, error)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        file = self.folder / f"{time.time_ns():020d}-{os.getpid()}.parquet"
        with atomic_file(file) as temporary:
            pq.write_table(pa.Table.from_pylist(rows, self._schema), temporary)
        for oldest in sorted(self.folder.glob("*.parquet"))[: -self.settings.files]:
            oldest.unlink(missing_ok=True)  # another server may have deleted it

    async def work(self) -> None:
        """Write full files, and from time to time partial ones, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._full.wait(), FLUSH_SECONDS)
            self._full.clear()
            await asyncio.shield(self.flush())
