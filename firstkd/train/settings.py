"""Training settings: those that decide the result, and those of the machine."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from firstkd.launchers.kinds import LOCAL, AnyLauncher
from firstkd.models.placement import WHOLE, AnyPlacement
from firstkd.models.settings import LoraSettings
from firstkd.section import Positive, Precision, Section, Share, Weight
from firstkd.train.schedule import COSINE, AnySchedule


class TrainingSettings(Section):
    """What decides the weights that training ends with."""

    epochs: Positive
    learning_rate: Annotated[float, Field(gt=0, lt=1)]
    micro_batch_size: Positive
    """Maximum examples per forward pass; lower it if memory runs out."""
    micro_batch_tokens: Positive
    """Maximum tokens per forward pass, padding included; long examples come in smaller batches."""
    micro_batches_per_step: Positive
    """Micro-batches of all processes together, so the number of processes changes no step."""
    warmup_ratio: Share
    """Share of the steps over which the learning rate rises."""
    schedule: AnySchedule = COSINE
    """How it then falls."""
    weight_decay: Weight
    gradient_clipping: Annotated[float, Field(gt=0)]
    """Largest norm of a step's gradient."""
    precision: Precision
    """Precision of the weights in each pass; the optimizer always keeps float32 ones."""
    lora: LoraSettings | None = None
    """For a model too large to tune in full; null to tune all weights."""

    @model_validator(mode="after")
    def _decay_follows_warmup(self) -> Self:
        if self.warmup_ratio + self.schedule.decay > 1:
            raise ValueError(
                f"schedule.decay: {self.schedule.decay:g} and warmup_ratio: {self.warmup_ratio:g} "
                "add up to more than all steps; lower one of them"
            )
        return self


class MachineSettings(Section):
    """How this machine trains and captures. No stage depends on it: a change alters results by
    rounding at most, reruns nothing, and lets an interrupted stage resume."""

    launcher: AnyLauncher = LOCAL
    """What starts the processes of a stage: on this host, or on several."""
    processes: Positive
    """A stage's processes on each host, one per GPU; torchrun starts them if there are several."""
    zero_stage: Literal[0, 1, 2, 3]
    """What is sharded across processes: nothing, optimizer states, gradients too, weights too."""
    cpu_offload: bool
    """Whether optimizer states (with ZeRO 3, weights too) are kept in the host's memory."""
    gradient_checkpointing: bool
    """Whether to recompute layers in the backward pass instead of keeping them in memory."""
    checkpoint_steps: Positive | None
    """Steps between checkpoints, from which a killed run resumes; null to save only at SIGTERM."""
    placement: AnyPlacement = WHOLE
    """Where to keep the weights of models that only run (captured, measured, checked)."""

    @property
    def all_processes(self) -> int:
        """Processes on all hosts together."""
        return self.processes * self.launcher.number_of_hosts

    @model_validator(mode="after")
    def _offload_needs_zero(self) -> Self:
        if self.cpu_offload and not self.zero_stage:
            raise ValueError("cpu_offload needs a zero_stage of 1, 2 or 3, not 0")
        return self
