"""Settings of training: what decides its result, and what the machine decides."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from firstkd.launchers.kinds import LOCAL, AnyLauncher
from firstkd.models.placement import WHOLE, AnyPlacement
from firstkd.models.settings import LoraSettings
from firstkd.section import Positive, Precision, Section, Share, Weight
from firstkd.train.schedule import COSINE, AnySchedule


class TrainingSettings(Section):
    """What decides the weights that a training ends with."""

    epochs: Positive
    learning_rate: Annotated[float, Field(gt=0, lt=1)]
    micro_batch_size: Positive
    """Examples per forward pass, at most: lower it when memory runs out."""
    micro_batch_tokens: Positive
    """Tokens per forward pass, at most, padding included: long examples come in smaller batches."""
    micro_batches_per_step: Positive
    """Micro-batches of all processes together: the number of processes changes no step."""
    warmup_ratio: Share
    """Share of the steps over which the learning rate rises."""
    schedule: AnySchedule = COSINE
    """How it falls then."""
    weight_decay: Weight
    gradient_clipping: Annotated[float, Field(gt=0)]
    """Largest norm of a step's gradient."""
    precision: Precision
    """Precision of the weights in the passes; the optimizer always keeps float32 ones."""
    lora: LoraSettings | None = None
    """For a model too large to tune in full; null to tune all weights."""

    @model_validator(mode="after")
    def _decay_follows_warmup(self) -> Self:
        if self.warmup_ratio + self.schedule.decay > 1:
            raise ValueError(
                f"schedule.decay: {self.schedule.decay:g} and warmup_ratio: {self.warmup_ratio:g} "
                "are more than all steps; lower one of them"
            )
        return self


class MachineSettings(Section):
    """How this machine trains and captures. No stage depends on it: a change alters results by
    rounding at most, reruns nothing, and lets an interrupted stage resume."""

    launcher: AnyLauncher = LOCAL
    """What starts the processes of a stage: on this host, or on several."""
    processes: Positive
    """Processes of a stage on each host, one per GPU; torchrun starts them if there are several."""
    zero_stage: Literal[0, 1, 2, 3]
    """What is sharded over processes: nothing, optimizer states, gradients too, weights too."""
    cpu_offload: bool
    """Whether optimizer states, with ZeRO 3 also weights, wait in the host's memory."""
    gradient_checkpointing: bool
    """Whether layers are computed again for the backward pass, instead of kept in memory."""
    checkpoint_steps: Positive | None
    """Steps between checkpoints, from which a killed training resumes; null to save only at
    SIGTERM."""
    placement: AnyPlacement = WHOLE
    """Where the weights of models that only run are kept (captured, measured, checked)."""

    @property
    def all_processes(self) -> int:
        """On all hosts together."""
        return self.processes * self.launcher.number_of_hosts

    @model_validator(mode="after")
    def _offload_needs_zero(self) -> Self:
        if self.cpu_offload and not self.zero_stage:
            raise ValueError("cpu_offload needs a zero_stage of 1, 2 or 3, not 0")
        return self
