"""Settings of training."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from firstkd.models.settings import LoraSettings
from firstkd.section import Positive, Section, Share, Weight


class TrainingSettings(Section):
    epochs: Positive
    learning_rate: Annotated[float, Field(gt=0, lt=1)]
    micro_batch_size: Positive
    """Examples per forward pass, at most: lower it when memory runs out."""
    micro_batch_tokens: Positive
    """Tokens per forward pass, at most, padding included: long examples come in smaller batches."""
    micro_batches_per_step: Positive
    """Of all processes together, which share them out: their number changes no step."""
    warmup_ratio: Share
    """Share of the steps over which the learning rate rises; then it falls as a cosine to 0."""
    weight_decay: Weight
    gradient_clipping: Annotated[float, Field(gt=0)]
    """Largest norm of a step's gradient."""
    precision: Literal["bf16", "fp32"]
    """Of the weights in the passes; the optimizer always keeps float32 ones."""
    gradient_checkpointing: bool
    """Whether layers are computed again for the backward pass, instead of kept in memory."""
    processes: Positive
    """On this host; torchrun starts them where there are more than one."""
    zero_stage: Literal[0, 1, 2, 3]
    """What is sharded over processes: nothing, optimizer states, gradients too, weights too."""
    cpu_offload: bool
    """Whether optimizer states, with ZeRO 3 also weights, wait in the host's memory."""
    checkpoint_steps: Positive | None
    """After so many steps training is saved, to go on there when it is killed; null for never,
    except at SIGTERM."""

    @model_validator(mode="after")
    def _offload_needs_zero(self) -> Self:
        if self.cpu_offload and not self.zero_stage:
            raise ValueError("cpu_offload needs a zero_stage of 1, 2 or 3, not 0")
        return self


class FinetuneSettings(TrainingSettings):
    lora: LoraSettings | None
    """For a teacher too large to tune in full; null to tune all weights."""
