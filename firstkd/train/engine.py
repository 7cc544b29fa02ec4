"""DeepSpeed in training: its configuration, its engine, the weights it shards.

With ZeRO 3 every process holds only a part of each weight, from loading on. A module gathers its
weights while it runs, which is why the head is a separate module (firstkd/models/scoring.py).
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from firstkd.models.folders import load_model, precision_here
from firstkd.train.distributed import Ranks
from firstkd.train.groups import groups_of
from firstkd.train.player import Player, Players
from firstkd.train.settings import MachineSettings, TrainingSettings
from firstkd.zero import WHOLE_BELOW, deepspeed

BUCKET_ELEMENTS = 2**25
"""Elements per bucket. The default, 5·10⁸, allocates gigabytes and costs a second per step."""


def deepspeed_config(
    settings: TrainingSettings, machine: MachineSettings, world_size: int
) -> dict[str, Any]:
    """Return DeepSpeed's own configuration.

    The gradients of a step's micro-batches are summed in float32, over time and over processes.
    With bfloat16 weights DeepSpeed 0.19 does so only from ZeRO stage 2 on: stage 0 accepts no other
    type than the weights' and rounds each partial sum to it; stage 1 does the same, or switches to
    another optimizer. So stage 2 replaces 0 and 1 if a step has several micro-batches, except that
    a single process without ZeRO lets PyTorch sum in float32 (`make_engine`). A single micro-batch
    leaves nothing to sum: its bfloat16 gradient goes to the float32 optimizer as it is.

    With float32 weights nothing is rounded, and stage 0 needs no copy of them.
    """
    in_bf16 = precision_here(settings.precision) == "bf16"
    alone = world_size == 1 and machine.zero_stage == 0
    lowest = 2 if in_bf16 and settings.micro_batches_per_step > 1 and not alone else 0
    zero: dict[str, Any] = {
        "stage": max(machine.zero_stage, lowest),
        "reduce_bucket_size": BUCKET_ELEMENTS,
        "allgather_bucket_size": BUCKET_ELEMENTS,
    }
    if machine.zero_stage == 3:
        zero["stage3_param_persistence_threshold"] = WHOLE_BELOW
    if machine.cpu_offload:
        offload = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        zero["offload_optimizer"] = offload
        if machine.zero_stage == 3:
            zero["offload_param"] = offload
    in_float32 = {
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
    }
    return {
        **(in_float32 if zero["stage"] >= 2 else {}),
        "train_micro_batch_size_per_gpu": settings.micro_batch_size,
        "gradient_accumulation_steps": settings.micro_batches_per_step // world_size,
        "gradient_clipping": settings.gradient_clipping,
        "bf16": {"enabled": in_bf16},
        "zero_optimization": zero,
        # torch's fused AdamW on the CPU is as fast as DeepSpeed's own, and needs no compiler
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def load_to_train(
    folder: Path, settings: TrainingSettings, machine: MachineSettings, ranks: Ranks
) -> PreTrainedModel:
    """Load a model onto the available device, as `load_model` does; with ZeRO 3 only part of it.

    In that case a weight is whole on the device only while it is being distributed: the first
    process reads it and sends it to the others.
    """
    if machine.zero_stage < 3:
        return load_model(folder, settings.precision)
    # while this object exists, transformers builds each module under deepspeed.zero.Init
    sharding = HfDeepSpeedConfig(deepspeed_config(settings, machine, ranks.world_size))
    model = load_model(folder, settings.precision)
    del sharding
    return model


def whole_weight(parameter: Tensor) -> AbstractContextManager[None]:
    """Give every process the whole weight inside the context, even if ZeRO 3 has sharded it.

    All processes keep what the first one writes to it.
    """
    gathered: AbstractContextManager[None] = deepspeed.zero.GatheredParameters(
        [parameter], modifier_rank=0
    )
    return gathered


def whole_weights(engine: Any) -> AbstractContextManager[Any]:
    """Give every process the whole weights inside the context, to run the model without gradient.

    All processes must call it; with ZeRO 3 the model must fit on each.
    """
    if engine.zero_optimization_stage() < 3:
        return nullcontext()
    whole: AbstractContextManager[Any] = deepspeed.runtime.zero.stage3.unwrap_model_for_generation(
        engine
    )
    return whole


def make_engine(
    player: Player | Players, settings: TrainingSettings, machine: MachineSettings, ranks: Ranks
) -> Any:
    """Return DeepSpeed's engine; the parameters stay the model's own."""
    player.train()
    if machine.gradient_checkpointing:
        player.recompute_layers()
    trained = [p for p in player.parameters() if p.requires_grad]
    # fused: one pass over the weights, 5 × faster on CPU than the default. Each step sets its rate;
    # DeepSpeed may make an extra step to allocate the states, which must change nothing.
    optimizer = torch.optim.AdamW(
        groups_of(player, settings.weight_decay),
        lr=0.0,
        betas=(0.9, 0.95),
        fused=True,
    )
    config = deepspeed_config(settings, machine, ranks.world_size)
    engine, *_ = deepspeed.initialize(model=player, optimizer=optimizer, config=config)
    for state in optimizer.state.values():
        state["step"].zero_()
    if engine.optimizer is optimizer:
        _tell_norm(engine, trained)
    if ranks.world_size == 1 and engine.zero_optimization_stage() == 0:
        engine.enable_backward_allreduce = False  # nobody to exchange with; saves 5 % of the step
        if settings.micro_batches_per_step > 1:
            for parameter in trained:
                parameter.grad_dtype = torch.float32
    return engine


def _tell_norm(engine: Any, trained: list[Any]) -> None:
    """Store the gradient norm where the engine looks for it, which its own clipping fails to do."""

    def clip() -> None:
        engine.optimizer._global_grad_norm = clip_grad_norm_(trained, engine.gradient_clipping())

    engine.clip_fp32_gradients = clip


def adam_of(engine: Any) -> torch.optim.Optimizer:
    """Return torch's optimizer, which DeepSpeed wraps if it updates a copy of the weights."""
    optimizer: torch.optim.Optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return optimizer


def end_engine(engine: Any, ranks: Ranks) -> None:
    """Give the model its whole weights back; with ZeRO 3 only in the first process, on the CPU."""
    whole = {}
    if engine.zero_optimization_stage() == 3:
        for parameter in engine.module.parameters():
            with deepspeed.zero.GatheredParameters([parameter]):
                if ranks.is_first:
                    whole[parameter] = parameter.data.to("cpu", copy=True)
    engine.destroy()
    for parameter, data in whole.items():
        parameter.data = data
