"""A device that is not there: tensors that lie in memory and say that they lie elsewhere.

Whatever mixes them with tensors of the CPU, reads them as NumPy, or asks for sums that a GPU cannot
repeat, fails as it would there, on a machine without one. What they compute is what the CPU
computes.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

ELSEWHERE = torch.device("lazy", 0)
"""Of the devices that this torch knows by name, one that autograd runs in the thread of the CPU."""
INDICES = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
"""On a GPU, too, what is indexed takes indices that lie on the CPU."""
COPIES = {"aten::copy_", "aten::_to_copy"}
NOT_REPEATABLE = {"aten::cumsum", "aten::cumsum_", "aten::histc", "aten::put", "aten::put_"}
"""Of floating-point numbers, refused by CUDA under `torch.use_deterministic_algorithms`."""


class Pretended(Tensor):
    """A tensor of the CPU that says it is elsewhere."""

    @staticmethod
    def __new__(cls, held: Tensor) -> "Pretended":
        return Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype,
            device=ELSEWHERE, requires_grad=False,
        )  # fmt: skip

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self) -> str:
        return f"elsewhere: {self.held!r}"

    def tolist(self) -> Any:
        return self.held.tolist()

    def new_tensor(self, values: Any) -> Tensor:  # type: ignore[override]
        return torch.tensor(values, dtype=self.dtype).to(self.device)

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(function, args, kwargs or {})


class PretendDevice(TorchDispatchMode):
    """Within it, tensors can be made on ELSEWHERE and brought there."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(function, args, kwargs or {})


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = function._schema.name
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [leaf for leaf in given if isinstance(leaf, Pretended)]
    asked = kwargs.get("device")
    if there and name not in COPIES:
        _check(name, args, given)
    if name in NOT_REPEATABLE and there and there[0].is_floating_point():
        raise RuntimeError(f"{name} does not have a deterministic implementation")
    args, kwargs = tree_map_only(Pretended, lambda tensor: tensor.held, (args, kwargs))
    if asked is not None:
        kwargs["device"] = torch.device("cpu")
    found = function(*args, **kwargs)
    stays = bool(there) if asked is None else torch.device(asked).type == ELSEWHERE.type
    if name == "aten::copy_":
        stays = isinstance(given[0], Pretended)
    if not stays:
        return found
    if there and function._schema.is_mutable and isinstance(found, Tensor):
        return given[0]
    return tree_map_only(Tensor, Pretended, found)


def _check(name: str, args: Any, given: list[Tensor]) -> None:
    """Raise RuntimeError where tensors of both devices meet, as a GPU would."""
    matter = [args[0], *args[2:]] if name in INDICES else given
    here = [
        tensor
        for tensor in tree_leaves(matter)
        if isinstance(tensor, Tensor) and not isinstance(tensor, Pretended) and tensor.dim()
    ]
    if here:
        raise RuntimeError(f"{name}: expected all tensors to be on the same device")


def without_inference_mode(patch: pytest.MonkeyPatch) -> None:
    """Have `torch.inference_mode` be `torch.no_grad`: it knows no tensors that pretend."""

    def enter(mode: Any) -> None:
        mode.instead = torch.no_grad()
        mode.instead.__enter__()

    patch.setattr(torch.inference_mode, "__enter__", enter)
    patch.setattr(torch.inference_mode, "__exit__", lambda mode, *how: mode.instead.__exit__(*how))
