"""Compute a signal from the stores of others."""

from pathlib import Path
from typing import Any

from firstkd.files import read_json
from firstkd.recalibration.table import from_json
from firstkd.signals.base import CombinedSignal
from firstkd.signals.store import SignalStore, write_manifest, write_shard
from tasks.layout import signal_folder, temperature_files


def combine(
    root: Path, signal: CombinedSignal, split: str, folder: Path, identity: dict[str, Any]
) -> None:
    """Write the signal of a split to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    members = [signal_folder(root, member, split) for member in signal.signals]
    keys, layout = SignalStore(members[0]).keys.tolist(), signal.layout(0)
    temperatures = [from_json(read_json(file)) for file in temperature_files(root, signal)]
    write_shard(folder, 0, layout, signal.combine(members, temperatures), keys)
    write_manifest(folder, layout, signal.kind, identity)
