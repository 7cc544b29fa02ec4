"""Checkpoints to resume training from: weights, optimizer and curve after a step, in safetensors.

A checkpoint is a folder `step-N`. Each process writes the pieces of the float32 weights and of
Adam's moments that it owns, keyed by name and by offset in the flattened weight. So any number of
processes, under any ZeRO stage, can reassemble them. Everything else that a step depends on (the
learning rate, the batches and the random numbers) follows from its number.

With several hosts, the folder must be on a file system that all of them share.
"""

import logging
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from firstkd.errors import ArtifactError
from firstkd.files import one_line_if_refused, read_json, replace_folder, sha256_of, write_json
from firstkd.train.distributed import Ranks
from firstkd.train.engine import adam_of, whole_weight
from firstkd.train.player import Player, Players

log = logging.getLogger(__name__)

KEPT = 2
"""Checkpoints to keep; the newest may turn out to be damaged."""
SUMS = "sha256.json"
STATE = "state.json"
MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's moments, as torch names them."""


class Piece(NamedTuple):
    """The part of a parameter that one process owns, as flat tensors of equal length."""

    name: str
    start: int
    """Offset in the flattened parameter."""
    tensors: dict[str, Tensor]
    """The float32 `weight` and the moments, as views of the optimizer's own memory."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    folder: Path
    step: int
    """Optimizer steps made so far."""
    adam_step: float
    """Adam's own step count, for its bias correction."""
    points: list[dict[str, float]]
    """The curve up to this step."""
    adapted: dict[str, Any]
    """The state of whatever adapts to calibration questions, by name."""

    def load_weights(self, player: Player | Players) -> None:
        """Restore the trained weights and whatever adapts, before the engine is made."""
        for name, found in player.adaptive.items():
            found.adaptive.restore(self.adapted[name])
        read = _Reader(self.folder)
        for name, parameter in player.named_parameters():
            if parameter.requires_grad and read.has(name):
                with whole_weight(parameter):
                    parameter.data.copy_(read.whole(name, "weight").view_as(parameter))

    def load_optimizer(self, engine: Any) -> None:
        """Restore the float32 weights and Adam's state in an engine that has not stepped yet."""
        read = _Reader(self.folder)
        names: dict[Tensor, str] = {p: name for name, p in engine.module.named_parameters()}
        for weights in _flat_weights(engine):
            if weights in names and not read.has(names[weights]):
                continue
            state = adam_of(engine).state[weights]
            state["step"] = torch.tensor(self.adam_step, device=weights.device)
            for moment in MOMENTS:
                state[moment] = torch.zeros_like(weights, requires_grad=False)
        for name, start, tensors in _pieces(engine):
            for kind, own in tensors.items():
                own.copy_(read.whole(name, kind)[start : start + len(own)])


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training run, in a separate folder."""

    folder: Path
    ranks: Ranks

    def save(self, engine: Any, step: int, points: list[dict[str, float]]) -> None:
        """Write the state after `step` steps, completely or not at all, and delete old ones.

        All processes must call it. Raises ArtifactError if the disk refuses.
        """
        final = self.folder / f"step-{step:08d}"
        temporary = self.folder / f".{final.name}.tmp"
        with one_line_if_refused(final):
            try:
                temporary.mkdir(parents=True, exist_ok=True)
                sums = self._write_pieces(engine, temporary)
                if self.ranks.is_first:
                    adam_step = next(iter(adam_of(engine).state.values()))["step"].item()
                    state = {"step": step, "adam_step": adam_step, "points": points}
                    adaptive = engine.module.adaptive.items()
                    state["adapted"] = {name: each.adaptive.state() for name, each in adaptive}
                    write_json(temporary / STATE, state)
                    write_json(temporary / SUMS, {**sums, STATE: sha256_of(temporary / STATE)})
                    replace_folder(temporary, final)
                    for outdated in self._newest_first()[KEPT:]:
                        shutil.rmtree(outdated)
            finally:
                if self.ranks.is_first:
                    shutil.rmtree(temporary, ignore_errors=True)

    def _write_pieces(self, engine: Any, folder: Path) -> dict[str, str]:
        """Write what this process owns; return the hash of every process's file."""
        file = folder / f"rank-{self.ranks.rank}.safetensors"
        sums = {}
        # without sharding every process owns everything, and one copy is enough
        if self.ranks.is_first or engine.zero_optimization_stage() > 0:
            tensors = {
                f"{name}|{kind}|{start}": tensor.detach()
                for name, start, kinds in _pieces(engine)
                for kind, tensor in kinds.items()
            }
            save_file(tensors, file)
            sums[file.name] = sha256_of(file)
        return {name: sum for found in self.ranks.gather(sums) for name, sum in found.items()}

    def newest(self) -> Checkpoint | None:
        """Return the newest complete checkpoint; log and delete any newer, damaged one.

        All processes must call it.
        """
        return self.ranks.from_first(self._newest)

    def _newest(self) -> Checkpoint | None:
        for half_written in self.folder.glob(".*.tmp"):
            shutil.rmtree(half_written)
        return next((c for f in self._newest_first() if (c := _checked(f))), None)

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)


def _checked(folder: Path) -> Checkpoint | None:
    """Return a folder's checkpoint; if a file is not as written, delete it and return None."""
    try:
        for name, digest in read_json(folder / SUMS).items():
            if not (folder / name).exists() or sha256_of(folder / name) != digest:
                raise ArtifactError(f"{folder / name} is missing or differs from what was written")
        return Checkpoint(folder, **read_json(folder / STATE))
    except ArtifactError as error:
        log.warning("damaged checkpoint; using the one before it: %s", error)
        shutil.rmtree(folder)
        return None


class _Reader:
    """Reassembles whole tensors from the pieces in a checkpoint's files."""

    def __init__(self, folder: Path) -> None:
        self._pieces: defaultdict[tuple[str, str], list[tuple[int, Any, str]]] = defaultdict(list)
        for path in folder.glob("*.safetensors"):
            file = safe_open(path, "pt")
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                name, kind, start = key.split("|")
                self._pieces[name, kind].append((int(start), file, key))

    def has(self, name: str) -> bool:
        """Whether it was saved: a parameter that no gradient has reached is as it began."""
        return (name, "weight") in self._pieces

    def whole(self, name: str, kind: str) -> Tensor:
        """Return a parameter's float32 weight or moment, flat."""
        pieces = sorted(self._pieces[name, kind], key=lambda piece: piece[0])
        return torch.cat([file.get_tensor(key) for _, file, key in pieces])


def _flat_weights(engine: Any) -> list[Tensor]:
    """Return the float32 weights in the form that keys the optimizer's state."""
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    if optimizer is adam_of(engine):
        return [weights for group in optimizer.param_groups for weights in group["params"]]
    if stage == 0:
        return [weights for group in optimizer.fp32_groups for weights in group]
    if stage == 3:
        return list(optimizer.fp32_partitioned_groups_flat)
    return list(optimizer.single_partition_of_fp32_groups)


def _pieces(engine: Any) -> Iterator[Piece]:
    """Yield this process's piece of each trained parameter; its tensors are writable."""
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    state = adam_of(engine).state
    names = {parameter: name for name, parameter in engine.module.named_parameters()}

    def piece(parameter: Tensor, start: int, flat: Tensor, offset: int, length: int) -> Piece:
        kinds = {"weight": flat.data, **{moment: state[flat][moment] for moment in MOMENTS}}
        return Piece(
            names[parameter],
            start,
            {kind: whole.view(-1)[offset : offset + length] for kind, whole in kinds.items()},
        )

    if optimizer is adam_of(engine):
        for parameter in _flat_weights(engine):
            if parameter in state:  # else no gradient has reached it, and it is as it began
                yield piece(parameter, 0, parameter, 0, parameter.numel())
    elif stage == 0:
        for low, high in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            for parameter, flat in zip(low, high, strict=True):
                yield piece(parameter, 0, flat, 0, flat.numel())
    elif stage == 3:
        for parameter in names:
            if parameter.requires_grad:
                group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
                start = size * engine.global_rank
                length = min(size, parameter.ds_numel - start)  # the last part is padded
                if length > 0:
                    flat = optimizer.fp32_partitioned_groups_flat[group]
                    yield piece(parameter, start, flat, offset, length)
    else:
        for group, flat in enumerate(optimizer.single_partition_of_fp32_groups):
            for parameter in optimizer.bit16_groups[group]:
                if mapping := parameter._hp_mapping:
                    here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
                    yield piece(parameter, here.start, flat, there.start, here.numel)
