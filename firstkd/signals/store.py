"""The signal store: what a model said about some examples, as columns of ragged records.

A store is a folder of safetensors shards and a manifest; docs/signal-format.md describes every
byte. A record is one decision of the model (a response token, a choice), and an example has zero
or more of them, in order. Shards hold whole examples, each under a key of its content, so that a
reader needs neither the order nor the tokenizer that the store was written with.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from firstkd.errors import ArtifactError
from firstkd.files import atomic_file, read_json, sha256_of, write_json
from firstkd.signals.columns import KEPT, Column, Layout, rows_of

FORMAT_VERSION = 3
MANIFEST = "manifest.json"
KEYS, COUNTS = "example_key", "example_records"


@dataclass(frozen=True)
class Records:
    """The R records of E examples, example after example."""

    columns: Mapping[str, Tensor]
    """[R] or [R, width] each."""
    counts: Tensor
    """[E] number of records of each example."""

    def __len__(self) -> int:
        return int(self.counts.sum())

    @property
    def example_R(self) -> Tensor:
        """[R] index of the example that each record belongs to."""
        index_E = torch.arange(len(self.counts), device=self.counts.device)
        return index_E.repeat_interleave(self.counts)

    def reordered(self, order: Tensor) -> Self:
        """Return the records of the examples `order`, in that order."""
        rows, counts = rows_of(self.counts, order)
        return type(self)({name: column[rows] for name, column in self.columns.items()}, counts)

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        columns = {
            name: torch.cat([part.columns[name] for part in parts]) for name in parts[0].columns
        }
        return cls(columns, torch.cat([part.counts for part in parts]))


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"{number:05}.safetensors"


def write_shard(
    folder: Path, number: int, layout: Layout, records: Records, keys: Sequence[int]
) -> None:
    """Write the records of some examples, identified by their `keys`."""
    kept = records.columns.get(KEPT, records.counts[:0])
    tensors = {
        name: column.to_disk(records.columns[name].to(column.dtype), kept).contiguous()
        for name, column in layout.items()
    }
    tensors |= {KEYS: torch.tensor(keys), COUNTS: records.counts.to(torch.int32)}
    with atomic_file(shard_path(folder, number)) as temporary:
        save_file(tensors, temporary)


def write_manifest(
    folder: Path, layout: Layout, kind: str, identity: Mapping[str, Any], **facts: Any
) -> None:
    """Describe the folder's shards: what they contain, and what they were made from.

    `facts` are what readers of this kind of signal need to know, such as the vocabulary's size.
    """
    shards = []
    incomplete: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as shard:
            counts = shard.get_tensor(COUNTS)
            for name, column in layout.items():
                if column.dtype.is_floating_point and shard.get_tensor(name).isnan().any():
                    incomplete.add(name)
        shards.append(
            {
                "file": path.name,
                "sha256": sha256_of(path),
                "examples": len(counts),
                "records": int(counts.sum()),
            }
        )
    manifest = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "columns": {name: column.to_json() for name, column in layout.items()},
        "incomplete": sorted(incomplete),
        "facts": facts,
        "identity": dict(identity),
        "shards": shards,
    }
    write_json(folder / MANIFEST, manifest)


class SignalStore:
    """An open store: memory-mapped shards, addressed by example."""

    def __init__(self, folder: Path) -> None:
        """Raises ArtifactError if the store is missing, damaged or of another version."""
        self.folder = folder
        self.manifest: dict[str, Any] = read_json(folder / MANIFEST)
        version = self.manifest["format_version"]
        if version != FORMAT_VERSION:
            raise ArtifactError(
                f"{folder}: signal format {version}, but this version reads {FORMAT_VERSION}; "
                f"rebuild it: run `dvc repro --force` on the stage that writes {folder}"
            )
        self.layout = {
            name: Column.from_json(column) for name, column in self.manifest["columns"].items()
        }
        with ThreadPoolExecutor() as pool:  # most of the time goes into checksums
            self.shards = [*pool.map(self._open, self.manifest["shards"])]
        self.keys = torch.cat([shard[KEYS] for shard in self.shards])
        counts = torch.cat([shard[COUNTS] for shard in self.shards]).long()
        self.starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        sizes = torch.tensor([int(shard[COUNTS].sum()) for shard in self.shards])
        self._shard_ends = sizes.cumsum(0)
        self._shard_starts = (self._shard_ends - sizes).tolist()

    def _open(self, shard: Mapping[str, Any]) -> dict[str, Tensor]:
        path = self.folder / shard["file"]
        if not path.exists():
            raise ArtifactError(f"{path} is missing; rerun the stage that writes it")
        if (found := sha256_of(path)) != shard["sha256"]:
            raise ArtifactError(
                f"{path} is damaged: sha256 {found}, but the manifest says {shard['sha256']}; "
                "rerun the stage that writes it"
            )
        tensors: dict[str, Tensor] = load_file(path)
        return tensors

    def __len__(self) -> int:
        """Return the number of records."""
        return int(self.starts[-1])

    @property
    def bytes(self) -> int:
        return sum(
            (self.folder / shard["file"]).stat().st_size for shard in self.manifest["shards"]
        )

    @property
    def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = self.manifest["facts"]
        return found

    @property
    def identity(self) -> dict[str, Any]:
        found: dict[str, Any] = self.manifest["identity"]
        return found

    def require(self, column: str) -> None:
        """Raise ArtifactError if a record lacks a column that its reader needs."""
        if column in self.manifest["incomplete"] or column not in self.layout:
            raise ArtifactError(
                f"{self.folder} lacks {column}, which is needed here; capture the signal again, or "
                "include it in the import"
            )

    def positions(self, keys: Sequence[int], names: Sequence[str]) -> Tensor:
        """Return where the examples with these keys are in the store; `names` are their ids.

        Raises ArtifactError for an example that is not in the store.
        """
        wanted, order = torch.tensor(keys, dtype=torch.int64), self.keys.argsort(stable=True)
        places = torch.searchsorted(self.keys, wanted, right=True, sorter=order) - 1
        positions = order[places.clamp_min(0)]
        missing = (self.keys[positions] != wanted).nonzero()[:, 0].tolist()
        if missing:
            raise ArtifactError(
                f"{self.folder} lacks {len(missing)} examples, including {names[missing[0]]}; "
                "the data have changed since it was written: run its stage again"
            )
        return positions

    def check_counts(self, positions: Tensor, wanted: Sequence[int], names: Sequence[str]) -> None:
        """Raise ArtifactError unless the examples have the expected numbers of records."""
        found, expected = self.starts.diff()[positions], torch.tensor(wanted, dtype=torch.int64)
        for i in (found != expected).nonzero()[:1, 0].tolist():
            raise ArtifactError(
                f"{self.folder} has {found[i]} records for example {names[i]}, not {expected[i]}: "
                "it was split into different tokens; run its stage again"
            )

    def of_examples(self, positions_B: Tensor) -> Records:
        """Return the records of the examples at these positions, in this order."""
        rows, counts = rows_of(self.starts.diff(), positions_B)
        return Records(self._gather(rows), counts)

    def whole(self) -> Records:
        """Return all records."""
        return Records(self._gather(torch.arange(len(self))), self.starts.diff())

    def parts(self, name: str) -> Iterator[Tensor]:
        """Yield a column's values, one shard at a time."""
        for shard in self.shards:
            yield self._read(shard, name, torch.arange(int(shard[COUNTS].sum())))

    def _read(self, shard: Mapping[str, Tensor], name: str, rows: Tensor) -> Tensor:
        return self.layout[name].from_disk(shard[name], shard.get(KEPT, rows[:0]), rows)

    def _gather(self, rows: Tensor) -> dict[str, Tensor]:
        shard_of = torch.bucketize(rows, self._shard_ends, right=True)
        numbers = shard_of.unique().tolist() or [0]
        parts, places = [], []
        for number in numbers:
            inside = (shard_of == number).nonzero()[:, 0]
            shard = self.shards[number]
            local = rows[inside] - self._shard_starts[number]
            parts.append({name: self._read(shard, name, local) for name in self.layout})
            places.append(inside)
        if len(parts) == 1:
            return parts[0]
        order = torch.cat(places).argsort()
        return {name: torch.cat([part[name] for part in parts])[order] for name in self.layout}
