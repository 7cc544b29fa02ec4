"""The kinds of signals, one module each."""

from typing import Annotated

from pydantic import Field

from firstkd.signals.choices import Choices
from firstkd.signals.mean import Mean
from firstkd.signals.out_of_fold import OutOfFold
from firstkd.signals.tokens import Tokens

KINDS = (Choices, Tokens, Mean, OutOfFold)

AnySignal = Annotated[Choices | Tokens | Mean | OutOfFold, Field(discriminator="kind")]
