"""Settings of answers in a model's own words."""

from typing import Annotated, Literal

from pydantic import Field

from firstkd.open_text.confidence import AnyConfidence
from firstkd.open_text.metrics import MetricName
from firstkd.section import Positive, Section, Weight

CalibrationName = Literal["temperature", "platt", "isotonic"]


class OpenTextSettings(Section):
    max_new_tokens: Positive
    """Length of an answer; what is longer is cut there."""
    temperature: Weight
    """For the answer: 0 takes the most probable token at each place, more draws from the model's
    probabilities at it, the same for the same question and seed."""
    metric: MetricName
    """By which an answer is compared with the right one."""
    right_from: Annotated[float, Field(gt=0, le=1)]
    """Value of the metric: at or above it an answer counts as right."""
    confidence: AnyConfidence
    recalibrate: CalibrationName
    """How the calibration split makes a probability of being right out of the confidence."""
