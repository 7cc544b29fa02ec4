"""The knowledge store: what is kept of the teacher, one record per decision.

A store is a folder of safetensors shards and a manifest. A decision is the next token at one
response token (`token`: the candidates are the top-k ids) or the answer to one question
(`choice`: the candidates are its choices, and there is no tail). An example has zero or more
records, in order; shards hold whole examples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from firstkd.errors import ArtifactError
from firstkd.files import read_json, sha256_of, write_json
from firstkd.prompts import Question

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
Kind = Literal["token", "choice"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Knowledge:
    """R decisions with K candidates each; where there are fewer, log-probability −inf."""

    top_ids: Tensor
    """[R, K] token ids, or the choices' indices."""
    top_logprobs: Tensor
    """[R, K] natural logarithms of the teacher's probabilities."""
    tail_mass: Tensor
    """[R] probability of everything that is no candidate."""
    gold_logprob: Tensor
    """[R] natural logarithm of the probability of the right candidate or token."""

    def is_right(self, gold_ids: Tensor) -> Tensor:
        """[R, K], True at the candidate `gold_ids` [R] names; nowhere where it is none of them."""
        return (self.top_ids == gold_ids[:, None]) & torch.isfinite(self.top_logprobs)

    def __len__(self) -> int:
        return len(self.tail_mass)

    def __getitem__(self, rows: Tensor) -> Self:
        return type(self)(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        return cls(
            **{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)}
        )


def example_key(question: Question) -> int:
    """64 bits that name the question's token ids: of which rows belong to which example."""
    ids = np.array([*question.prompt, *(t for r in question.responses for t in (-1, *r))], np.int32)
    return int.from_bytes(sha256(ids.tobytes()).digest()[:8], "little", signed=True)


def storage_dtypes(kind: Kind, vocabulary_size: int) -> dict[str, torch.dtype]:
    """Of each field: 24 bytes a token at k = 5 for vocabularies up to 65,536.

    Summed over the tokens of a choice, log-probabilities outgrow float16's precision; there are
    few of them, so they stay float32.
    """
    ids = torch.uint16 if vocabulary_size <= 2**16 else torch.int32
    reals = torch.float16 if kind == "token" else torch.float32
    return {"top_ids": ids, "top_logprobs": reals, "tail_mass": reals, "gold_logprob": reals}


def write_shard(
    folder: Path, number: int, knowledge: Knowledge, keys: Tensor, records: Tensor, dtypes: Any
) -> None:
    """Write the records of some examples; `keys` [E] and `records` [E] name and count them."""
    tensors = {name: getattr(knowledge, name).to(dtype) for name, dtype in dtypes.items()}
    tensors |= {"example_key": keys, "example_records": records}
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / f"{number:05}.safetensors")


def write_manifest(
    folder: Path, kind: Kind, top_k: int, vocabulary_size: int, identity: dict[str, Any]
) -> None:
    """Describe the folder's shards, and say what they were made from."""
    shards = []
    for path in sorted(folder.glob("*.safetensors")):
        records = load_file(path)["example_records"]
        shards.append(
            {
                "file": path.name,
                "sha256": sha256_of(path),
                "examples": len(records),
                "records": int(records.sum()),
            }
        )
    dtypes = storage_dtypes(kind, vocabulary_size)
    manifest = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "top_k": top_k,
        "vocabulary_size": vocabulary_size,
        "fields": {name: str(dtype).removeprefix("torch.") for name, dtype in dtypes.items()},
        "identity": identity,
        "shards": shards,
    }
    write_json(folder / MANIFEST, manifest)


class KnowledgeStore:
    """An open store: memory-mapped shards, addressed by example."""

    def __init__(self, folder: Path) -> None:
        """Raises ArtifactError when the store is missing, damaged or of another version."""
        self.manifest: dict[str, Any] = read_json(folder / MANIFEST)
        if self.manifest["format_version"] != FORMAT_VERSION:
            raise ArtifactError(
                f"{folder}: knowledge format {self.manifest['format_version']}, but this version "
                f"reads {FORMAT_VERSION}; run the extract stage again"
            )
        self.folder = folder
        shards = [self._open(folder / shard["file"], shard) for shard in self.manifest["shards"]]
        self.keys = torch.cat([shard["example_key"] for shard in shards])
        counts = torch.cat([shard["example_records"] for shard in shards]).long()
        self.starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        names = [field.name for field in fields(Knowledge)]
        self.shards = [Knowledge(**{name: shard[name] for name in names}) for shard in shards]
        self.shard_ends = torch.tensor([len(shard) for shard in self.shards]).cumsum(0)

    @staticmethod
    def _open(path: Path, shard: dict[str, Any]) -> dict[str, Tensor]:
        if not path.exists():
            raise ArtifactError(f"{path} is missing; run the extract stage again")
        if (found := sha256_of(path)) != shard["sha256"]:
            raise ArtifactError(
                f"{path} is damaged: sha256 {found}, but the manifest says {shard['sha256']}; "
                "run the extract stage again"
            )
        return load_file(path)

    def check(self, identity: dict[str, Any], questions: Sequence[Question]) -> None:
        """Raise ArtifactError unless the store was made from exactly this, in this order."""
        stored = self.manifest["identity"]
        for name in sorted(stored.keys() | identity.keys()):
            if stored.get(name) != identity.get(name):
                raise ArtifactError(
                    f"{self.folder}: made with {name} {stored.get(name)!r}, but now it is "
                    f"{identity.get(name)!r}; run the extract stage again"
                )
        keys = torch.tensor([example_key(question) for question in questions])
        if len(keys) != len(self.keys):
            raise ArtifactError(f"{self.folder}: {len(self.keys)} examples, expected {len(keys)}")
        if len(different := (keys != self.keys).nonzero()):
            raise ArtifactError(
                f"{self.folder}: holds the tokens of another example than "
                f"{questions[int(different[0])].id}; run the extract stage again"
            )

    def of_examples(self, index_B: Tensor) -> Knowledge:
        """Return the records of these examples, one example's after the other's, as float32."""
        starts, ends = self.starts[index_B], self.starts[index_B + 1]
        counts = ends - starts
        first = counts.cumsum(0) - counts
        total = int(counts.sum())
        rows = torch.arange(total) + (starts - first).repeat_interleave(counts, output_size=total)
        return self._gather(rows)

    def decoded(self) -> Knowledge:
        """Return all records as int64 ids and float32 reals."""
        return self._gather(torch.arange(int(self.starts[-1])))

    def _gather(self, rows: Tensor) -> Knowledge:
        shard_of = torch.bucketize(rows, self.shard_ends, right=True)
        found: dict[str, Tensor] = {}
        for field in fields(Knowledge):
            sample = getattr(self.shards[0], field.name)
            dtype = torch.float32 if sample.is_floating_point() else torch.int64
            found[field.name] = torch.empty(len(rows), *sample.shape[1:], dtype=dtype)
        for number in shard_of.unique().tolist():
            inside = shard_of == number
            shard = self.shards[number]
            local = rows[inside] - (self.shard_ends[number] - len(shard))
            for name, values in found.items():
                values[inside] = getattr(shard, name)[local].to(values.dtype)
        return Knowledge(**found)
