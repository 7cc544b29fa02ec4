"""A model whose layers are spread over devices, the host's memory and disk (Accelerate).

A layer that is not on a device is moved to one while it runs.
"""

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

from accelerate.hooks import attach_execution_device_hook, remove_hook_from_module
from accelerate.utils import align_module_device, get_max_memory
from torch import nn
from transformers import PreTrainedModel

from firstkd.memory import memory_explained
from firstkd.models.folders import device, load_model
from firstkd.section import Precision

SHARE_OF_FREE = 0.9
"""Share of the free memory that weights may take."""
REMEDY = "lower machine.placement.device_gb or host_gb, so that more of it stays on disk"


def load_spread(
    folder: Path, precision: Precision, device_gb: float | None, host_gb: float | None
) -> PreTrainedModel:
    """Load a model with at most these sizes of weights on each device and in the host's memory.

    Its head is whole, on top of these. Raises ArtifactError as `load_model` does, and
    OutOfMemoryError.
    """
    rewritten = tempfile.mkdtemp(prefix="firstkd-")
    try:
        with memory_explained(f"while loading {folder}", REMEDY):
            model = load_model(
                folder,
                precision,
                device_map="balanced",
                max_memory=limits(device_gb, host_gb),
                offload_folder=rewritten,  # for weights that differ in memory from the files
            )
            make_head_whole(model)
    except BaseException:
        shutil.rmtree(rewritten)
        raise
    weakref.finalize(model, shutil.rmtree, rewritten)
    return model


def limits(device_gb: float | None, host_gb: float | None) -> dict[int | str, int]:
    """Return the bytes that weights may take, by GPU and for `cpu`."""
    found = {}
    for place, free in get_max_memory().items():
        most = host_gb if place == "cpu" else device_gb
        share = SHARE_OF_FREE * free
        found[place] = int(share if most is None else min(share, most * 1e9))
    return found


def make_head_whole(model: Any) -> None:
    """Move the head, wherever it is, to the first device and keep it there."""
    head, place = model.get_output_embeddings(), device()
    with align_module_device(head):
        weights = {
            name: weight.detach().to(place, copy=True)
            for name, weight in head.named_parameters(recurse=False)
        }
    remove_hook_from_module(head)
    for name, weight in weights.items():
        setattr(head, name, nn.Parameter(weight, requires_grad=False))
    attach_execution_device_hook(head, place)
