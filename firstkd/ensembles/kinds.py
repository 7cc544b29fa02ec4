"""The kinds of ensembles, one module each."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from firstkd.ensembles.deep import Deep
from firstkd.ensembles.dropout import Dropout
from firstkd.ensembles.laplace import Laplace
from firstkd.ensembles.swag import Swag

KINDS = (Deep, Dropout, Swag, Laplace)


def _names_are_a_deep_ensemble(ensemble: Any) -> Any:
    """`[a, b]` is short for `{kind: deep, of: [a, b]}`."""
    return {"kind": "deep", "of": ensemble} if isinstance(ensemble, list) else ensemble


AnyEnsemble = Annotated[
    Annotated[Deep | Dropout | Swag | Laplace, Field(discriminator="kind")],
    BeforeValidator(_names_are_a_deep_ensemble),
]
