"""The learning rate: how it rises, and how it then falls."""

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from firstkd.section import Name, Section

if TYPE_CHECKING:
    from firstkd.train.settings import TrainingSettings


class Cosine(Section):
    """Half a cosine from the end of the warm-up to 0 (Loshchilov and Hutter 2017)."""

    kind: Literal["cosine"]
    decay: ClassVar[float] = 0.0
    """Share of the steps that it needs after the warm-up."""
    data: ClassVar[tuple[str, ...]] = ()
    """The only data sets used in these steps; all of them if it names none."""

    def share(self, step: int, warmup: float, steps: int) -> float:
        """Return the share of the full rate at a step after `warmup` steps, of `steps` in all."""
        progress = (step - warmup) / max(1.0, steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * progress))


class Wsd(Section):
    """Warm-up, stable, decay: constant, then linear to 0 (MiniCPM, Hu et al. 2024, arXiv
    2404.06395, sec. 4; the linear decay follows Hägele et al. 2024, arXiv 2405.18392)."""

    kind: Literal["wsd"]
    decay: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of all steps over which the rate falls."""
    data: tuple[Name, ...] = ()
    """The only data sets used meanwhile (two stages: MiniCPM, sec. 5); empty for all."""

    def share(self, step: int, warmup: float, steps: int) -> float:
        """Return the share of the full rate at a step after `warmup` steps, of `steps` in all."""
        return min(1.0, (steps - step) / (self.decay * steps))


AnySchedule = Annotated[Cosine | Wsd, Field(discriminator="kind")]
COSINE = Cosine(kind="cosine")


def learning_rate_at(settings: "TrainingSettings", step: int, steps: int) -> float:
    """Return the rate: linear warm-up over `warmup_ratio` of the steps, then `schedule`."""
    warmup = settings.warmup_ratio * steps
    if step < warmup:
        return settings.learning_rate * (step + 1) / (warmup + 1)
    return settings.learning_rate * settings.schedule.share(step, warmup, steps)
