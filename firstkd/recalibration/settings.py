"""Settings of recalibration."""

from typing import Annotated, Literal

from pydantic import Field

from firstkd.section import Section

RecalibrationName = Literal[
    "none",
    "temperature",
    "adaptive_temperature",
    "vocabulary_temperature",
    "paper",
    "label_smoothing",
    "platt",
    "isotonic",
]


NEED_TAIL_NODES = frozenset({"vocabulary_temperature"})
"""Recalibrations that also temper what lies outside the candidates."""


class CalibrateSettings(Section):
    criterion: Literal["nll", "ece"]
    max_temperature: Annotated[float, Field(gt=1)]
    bootstrap_samples: Annotated[int, Field(ge=100)]
    """For the interval of the fitted temperature."""
