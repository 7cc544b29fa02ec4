"""The kinds of terms, one module each."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from firstkd.section import Name
from firstkd.terms.choice_kl import ChoiceKl
from firstkd.terms.gold import Gold
from firstkd.terms.gold_choice import GoldChoice
from firstkd.terms.sparse_kl import SparseKl

KINDS = (Gold, GoldChoice, ChoiceKl, SparseKl)

AnyTerm = Annotated[Gold | GoldChoice | ChoiceKl | SparseKl, Field(discriminator="kind")]


def _kind_is_the_name(learn: Any) -> Any:
    """`gold: {}` is short for `gold: {kind: gold}`."""
    if not isinstance(learn, dict):
        return learn
    return {
        name: {"kind": name, **term} if isinstance(term, dict) else term
        for name, term in learn.items()
    }


Learn = Annotated[dict[Name, AnyTerm], Field(min_length=1), BeforeValidator(_kind_is_the_name)]
"""What a model learns from: its terms by their names."""
