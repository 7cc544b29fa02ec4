"""The kinds of signals, one module each."""

from typing import Annotated

from pydantic import Field

from firstkd.signals.answers import Answers
from firstkd.signals.choices import Choices
from firstkd.signals.ensemble import Ensemble
from firstkd.signals.hidden_states import HiddenStates
from firstkd.signals.mean import Mean
from firstkd.signals.out_of_fold import OutOfFold
from firstkd.signals.tokens import Tokens

KINDS = (Choices, Tokens, Answers, HiddenStates, Mean, OutOfFold, Ensemble)

AnySignal = Annotated[
    Choices | Tokens | Answers | HiddenStates | Mean | OutOfFold | Ensemble,
    Field(discriminator="kind"),
]
