"""The kinds of terms, one module each."""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from firstkd.section import Name, listed
from firstkd.terms.adaptive_focal import AdaptiveFocal
from firstkd.terms.adversarial import Adversarial
from firstkd.terms.alm import Alm
from firstkd.terms.attention import Attention
from firstkd.terms.choice_kl import ChoiceKl
from firstkd.terms.curriculum_kl import CurriculumKl
from firstkd.terms.dirichlet import Dirichlet
from firstkd.terms.flow import Flow
from firstkd.terms.gold import Gold
from firstkd.terms.gold_choice import GoldChoice
from firstkd.terms.hard_choice import HardChoice
from firstkd.terms.hidden import Hidden
from firstkd.terms.relation import Relation
from firstkd.terms.sparse_kl import SparseKl
from firstkd.terms.uld import Uld

KINDS = (
    *(Gold, GoldChoice, AdaptiveFocal, ChoiceKl, HardChoice, SparseKl, Alm, Uld),
    *(Hidden, Relation, Flow, Attention, Dirichlet, CurriculumKl, Adversarial),
)

CURVE = frozenset(
    {
        *("step", "loss", "learning_rate", "gradient_norm", "loss_scale"),
        *("step_tokens", "tokens_per_second"),
    }
)
"""Columns of a training curve that no term can be named after."""

AnyTerm = Annotated[
    Gold
    | GoldChoice
    | AdaptiveFocal
    | ChoiceKl
    | HardChoice
    | SparseKl
    | Alm
    | Uld
    | Hidden
    | Relation
    | Flow
    | Attention
    | Dirichlet
    | CurriculumKl
    | Adversarial,
    Field(discriminator="kind"),
]


def _kind_is_the_name(learn: Any) -> Any:
    """`gold: {}` is short for `gold: {kind: gold}`."""
    if not isinstance(learn, dict):
        return learn
    return {
        name: {"kind": name, **term} if isinstance(term, dict) else term
        for name, term in learn.items()
    }


def _names_are_free(learn: dict[str, AnyTerm]) -> dict[str, AnyTerm]:
    if taken := learn.keys() & CURVE:
        raise ValueError(
            f"{listed(set(taken))} is already a column of the training curve, where each term "
            "gets one; rename the term"
        )
    return learn


Learn = Annotated[
    dict[Name, AnyTerm],
    Field(min_length=1),
    BeforeValidator(_kind_is_the_name),
    AfterValidator(_names_are_free),
]
"""What a model learns from: its terms by name."""
