"""Settings of evaluation."""

from typing import Annotated

from pydantic import Field

from firstkd.open_text.settings import OpenTextSettings
from firstkd.section import Name, Positive, Section


class EvaluateSettings(Section):
    micro_batch_size: Positive
    micro_batch_tokens: Positive
    """Tokens per forward pass, at most, padding included."""
    bootstrap_samples: Annotated[int, Field(ge=100)]
    open_text: OpenTextSettings
    """How examples without choices are answered, and when an answer counts as right."""
    models: Annotated[list[Name], Field(min_length=1)]
    """Names of the models, and of the exports, to evaluate, in the order of the tables."""
