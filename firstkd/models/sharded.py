"""A model with part of each layer in every process (DeepSpeed's ZeRO 3, without training).

A layer's weights are gathered while it runs, which takes all processes. They need not run it
equally often: a process that is done keeps running it, for the others' sake, until all are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from firstkd.memory import memory_explained
from firstkd.models.folders import device, load_model, precision_here
from firstkd.section import Precision
from firstkd.train.distributed import Ranks
from firstkd.zero import WHOLE_BELOW, deepspeed

REMEDY = "raise machine.processes, or set machine.placement to { kind: spread }"


@contextmanager
def sharded(folder: Path, precision: Precision, ranks: Ranks) -> Iterator[PreTrainedModel]:
    """Load a model that each process may run in the body as often as it likes.

    Its head is whole in each of them. Raises ArtifactError as `load_model` does, and
    OutOfMemoryError.
    """
    with memory_explained(f"while loading {folder}", REMEDY):
        # while this object exists, transformers builds each module under deepspeed.zero.Init
        config = deepspeed_config(precision)
        sharding = HfDeepSpeedConfig(config)
        model = load_model(folder, precision).eval()
        del sharding
        make_head_whole(model)
        backbone: Any = model.base_model
        engine, *_ = deepspeed.initialize(model=backbone, config=config)

    def announce(*_: Any) -> None:
        ranks.gather(True)

    announced = backbone.register_forward_pre_hook(announce, prepend=True)
    yield model
    announced.remove()
    token = torch.zeros(1, 1, dtype=torch.int64, device=device())
    with torch.inference_mode():
        while any(ranks.gather(False)):
            backbone(input_ids=token, use_cache=False)
    engine.destroy()


def deepspeed_config(precision: Precision) -> dict[str, Any]:
    """Return DeepSpeed's configuration for models that only run."""
    return {
        "train_micro_batch_size_per_gpu": 1,  # DeepSpeed needs one
        # without it, bfloat16 weights become float32
        "bf16": {"enabled": precision_here(precision) == "bf16"},
        "zero_optimization": {
            "stage": 3,
            "stage3_param_persistence_threshold": WHOLE_BELOW,
            # keep nothing of a layer for its next use, and prefetch nothing of the next layer
            "stage3_max_reuse_distance": 0,
            "stage3_prefetch_bucket_size": 0,
        },
    }


def make_head_whole(model: Any) -> None:
    """Give each process the whole head; an embedding that was tied to it stays sharded."""
    head = model.get_output_embeddings()
    shared = dict(head.named_parameters(recurse=False))
    with deepspeed.zero.GatheredParameters([*shared.values()]):
        whole = {name: weight.detach().clone() for name, weight in shared.items()}
    for name, weight in whole.items():
        setattr(head, name, nn.Parameter(weight, requires_grad=False))
