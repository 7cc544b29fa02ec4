"""The knowledge store: what is kept of the teacher, one record per decision.

A store is a folder of safetensors shards and a manifest; docs/knowledge-format.md describes every
byte. A decision is the next token at one response token (`token`: the candidates are the top-k
ids) or the answer to one question (`choice`: the candidates are its choices, and there is no
tail). An example has zero or more records, in order; shards hold whole examples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from firstkd.data.prompts import Question
from firstkd.errors import ArtifactError, ConfigError
from firstkd.files import atomic_file, read_json, sha256_of, write_json

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
MAX_VOCABULARY = 2**20
Kind = Literal["token", "choice"]
Stored = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Knowledge:
    """R decisions with K candidates each; where there are fewer, log-probability −inf."""

    top_ids: Tensor
    """[R, K] token ids, or the choices' indices."""
    top_logprobs: Tensor
    """[R, K] natural logarithms of the teacher's probabilities."""
    log_tail_mass: Tensor
    """[R] natural logarithm of the probability of everything that is no candidate."""
    gold_logprob: Tensor
    """[R] natural logarithm of the probability of the right candidate or token; NaN: unknown."""
    tail_bends: Tensor
    """[R, J] how the tail behaves at other temperatures (firstkd/signals/tail.py); J is often 0."""
    vocabulary_size: int
    """Of tokens, or of choices: candidates and tail together."""

    @classmethod
    def of_choices(cls, logprobs_RK: Tensor, gold_R: Tensor) -> Self:
        """Decisions between choices, of which `gold_R` is right; −inf where there is none."""
        num_choices = logprobs_RK.shape[1]
        return cls(
            top_ids=torch.arange(num_choices).expand(len(logprobs_RK), -1),
            top_logprobs=logprobs_RK,
            log_tail_mass=torch.full((len(logprobs_RK),), -torch.inf),
            gold_logprob=logprobs_RK.gather(-1, gold_R[:, None])[:, 0],
            tail_bends=torch.empty(len(logprobs_RK), 0),
            vocabulary_size=num_choices,
        )

    @property
    def tail_mass(self) -> Tensor:
        """[R] probability of everything that is no candidate."""
        return self.log_tail_mass.exp()

    def is_right(self, gold_ids: Tensor) -> Tensor:
        """[R, K], True at the candidate `gold_ids` [R] names; nowhere where it is none of them."""
        return (self.top_ids == gold_ids[:, None]) & torch.isfinite(self.top_logprobs)

    def __len__(self) -> int:
        return len(self.log_tail_mass)

    def __getitem__(self, rows: Tensor) -> Self:
        return replace(self, **{name: getattr(self, name)[rows] for name in FIELDS})

    def cpu(self) -> Self:
        return replace(self, **{name: getattr(self, name).cpu() for name in FIELDS})

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        tensors: dict[str, Any] = {
            name: torch.cat([getattr(part, name) for part in parts]) for name in FIELDS
        }
        return replace(parts[0], **tensors)


FIELDS = tuple(field.name for field in fields(Knowledge) if field.name != "vocabulary_size")
"""Those that are tensors, one row per decision."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What all records of a store have in common, and how they lie in its shards.

    Token decisions take 24 bytes at k = 5 for vocabularies up to 65,536 and 27 above, and 2 more
    for each tail node. There are few choice decisions, so their reals stay float32.
    """

    kind: Kind
    top_k: int
    vocabulary_size: int
    tail_nodes: int = 0

    def __post_init__(self) -> None:
        if self.vocabulary_size > MAX_VOCABULARY:
            raise ConfigError(
                f"a vocabulary of {self.vocabulary_size:,} tokens; the knowledge store takes up to "
                f"{MAX_VOCABULARY:,}"
            )
        if self.kind == "token" and self.top_k >= self.vocabulary_size:
            raise ConfigError(
                f"extract.top_k: {self.top_k} of a vocabulary of {self.vocabulary_size} tokens "
                "leaves no tail; lower it"
            )

    @property
    def has_wide_ids(self) -> bool:
        return self.vocabulary_size > 2**16

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """Of each stored field."""
        reals = torch.float16 if self.kind == "token" else torch.float32
        dtypes = {"top_ids": torch.uint16}
        if self.has_wide_ids:
            dtypes["top_ids_high"] = torch.uint8
        dtypes |= dict.fromkeys(("top_logprobs", "log_tail_mass", "gold_logprob"), reals)
        if self.tail_nodes:
            dtypes["tail_bends"] = reals
        return dtypes

    def pack(self, knowledge: Knowledge) -> Stored:
        stored = {name: getattr(knowledge, name) for name in self.dtypes if name in FIELDS}
        if self.has_wide_ids:
            stored["top_ids"] = knowledge.top_ids & 0xFFFF
            stored["top_ids_high"] = _pack_nibbles(knowledge.top_ids >> 16)
        return {name: stored[name].to(dtype).contiguous() for name, dtype in self.dtypes.items()}

    def unpack(self, stored: Mapping[str, Tensor]) -> Knowledge:
        """Return int64 ids and float32 reals."""
        top_ids = stored["top_ids"].long()
        if self.has_wide_ids:
            top_ids |= _unpack_nibbles(stored["top_ids_high"], self.top_k) << 16
        rest = {name: stored[name].float() for name in FIELDS[1:] if name in stored}
        rest.setdefault("tail_bends", torch.empty(len(top_ids), 0))
        return Knowledge(top_ids=top_ids, vocabulary_size=self.vocabulary_size, **rest)


def _pack_nibbles(values_RK: Tensor) -> Tensor:
    """Two values below 16 a byte, the first in the low half; uint8 [R, ⌈K/2⌉]."""
    padded = torch.nn.functional.pad(values_RK, (0, values_RK.shape[1] % 2))
    return (padded[:, 0::2] | padded[:, 1::2] << 4).to(torch.uint8)


def _unpack_nibbles(packed: Tensor, count: int) -> Tensor:
    wide = packed.long()
    return torch.stack([wide & 15, wide >> 4], dim=-1).flatten(1)[:, :count]


def example_key(question: Question) -> int:
    """64 bits that name the question's token ids: of which rows belong to which example."""
    ids = np.array([*question.prompt, *(t for r in question.responses for t in (-1, *r))], np.int32)
    return int.from_bytes(sha256(ids.tobytes()).digest()[:8], "little", signed=True)


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"{number:05}.safetensors"


def write_shard(
    folder: Path, number: int, layout: Layout, knowledge: Knowledge, keys: Tensor, records: Tensor
) -> None:
    """Write the records of some examples; `keys` [E] and `records` [E] name and count them."""
    tensors = layout.pack(knowledge) | {"example_key": keys, "example_records": records}
    with atomic_file(shard_path(folder, number)) as temporary:
        save_file(tensors, temporary)


def write_manifest(folder: Path, layout: Layout, identity: dict[str, Any]) -> None:
    """Describe the folder's shards, and say what they were made from and what they lack."""
    shards = []
    missing = {"tail_bends"} if layout.kind == "token" and not layout.tail_nodes else set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as shard:
            records = shard.get_tensor("example_records")
            if shard.get_tensor("gold_logprob").isnan().any():
                missing.add("gold_logprob")
        shards.append(
            {
                "file": path.name,
                "sha256": sha256_of(path),
                "examples": len(records),
                "records": int(records.sum()),
            }
        )
    dtypes = {name: str(dtype).removeprefix("torch.") for name, dtype in layout.dtypes.items()}
    manifest = {
        "format_version": FORMAT_VERSION,
        **asdict(layout),
        "fields": dtypes,
        "missing": sorted(missing),
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
        self.layout = Layout(**{f.name: self.manifest[f.name] for f in fields(Layout)})
        self.shards = [
            self._open(folder / shard["file"], shard) for shard in self.manifest["shards"]
        ]
        self.keys = torch.cat([shard["example_key"] for shard in self.shards])
        counts = torch.cat([shard["example_records"] for shard in self.shards]).long()
        self.starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        self.shard_ends = torch.tensor([len(shard["top_ids"]) for shard in self.shards]).cumsum(0)

    @staticmethod
    def _open(path: Path, shard: dict[str, Any]) -> Stored:
        if not path.exists():
            raise ArtifactError(f"{path} is missing; run the extract stage again")
        if (found := sha256_of(path)) != shard["sha256"]:
            raise ArtifactError(
                f"{path} is damaged: sha256 {found}, but the manifest says {shard['sha256']}; "
                "run the extract stage again"
            )
        return load_file(path)

    def __len__(self) -> int:
        """Number of records."""
        return int(self.starts[-1])

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

    def require(self, field: str) -> None:
        """Raise ArtifactError where some record lacks a field that its reader needs."""
        if field in self.manifest["missing"]:
            raise ArtifactError(
                f"{self.folder} lacks {field}, which is needed here; capture it with the extract "
                "stage, or give it in what is imported"
            )

    def of_examples(self, index_B: Tensor) -> Knowledge:
        """Return the records of these examples, one example's after the other's."""
        starts, ends = self.starts[index_B], self.starts[index_B + 1]
        counts = ends - starts
        first = counts.cumsum(0) - counts
        total = int(counts.sum())
        rows = torch.arange(total) + (starts - first).repeat_interleave(counts, output_size=total)
        return self._gather(rows)

    def decoded(self) -> Knowledge:
        """Return all records."""
        return self._gather(torch.arange(len(self)))

    def _gather(self, rows: Tensor) -> Knowledge:
        shard_of = torch.bucketize(rows, self.shard_ends, right=True)
        parts, places = [], []
        for number in shard_of.unique().tolist():
            inside = (shard_of == number).nonzero()[:, 0]
            shard = self.shards[number]
            local = rows[inside] - (self.shard_ends[number] - len(shard["top_ids"]))
            parts.append(self.layout.unpack({n: shard[n][local] for n in self.layout.dtypes}))
            places.append(inside)
        if not parts:
            return self.layout.unpack({n: self.shards[0][n][:0] for n in self.layout.dtypes})
        return Knowledge.concatenate(parts)[torch.cat(places).argsort()]
