"""The kinds of signals, one module each."""

from typing import Annotated

from pydantic import Field

from firstkd.signals.choices import Choices
from firstkd.signals.mean import Mean
from firstkd.signals.tokens import Tokens

KINDS = (Choices, Tokens, Mean)

AnySignal = Annotated[Choices | Tokens | Mean, Field(discriminator="kind")]
