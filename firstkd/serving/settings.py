"""Settings of serving: when a student answers, and when it does not."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from firstkd.section import Section, Share, Weight

Open = Annotated[float, Field(gt=0, lt=1)]


class PolicySettings(Section):
    """The promise that a threshold on the confidence has to keep."""

    max_error: Open
    """Share of the answers given, at most, that may be wrong."""
    confidence: Open
    """Probability, over draws of the calibration questions, that the promise holds."""


class CostSettings(Section):
    """What a thousand questions cost, in a currency of your own."""

    student: Weight
    teacher: Weight


class ServeSettings(Section):
    policy: PolicySettings | None
    """From which evaluate finds each model's threshold, on its calibration questions."""
    abstain_below: Share | None
    """A threshold of your own, without a promise; goes with each version when it is registered."""

    cost: CostSettings | None
    """For the report: what it costs to pass questions on."""

    @model_validator(mode="after")
    def _one_threshold(self) -> Self:
        if self.policy is not None and self.abstain_below is not None:
            raise ValueError(
                f"policy and abstain_below ({self.abstain_below:g}) both set the threshold; "
                "set one of them to null"
            )
        return self
