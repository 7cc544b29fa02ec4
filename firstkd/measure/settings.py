"""Evaluation settings."""

from typing import Annotated

from pydantic import Field

from firstkd.ensembles.kinds import AnyEnsemble
from firstkd.open_text.settings import OpenTextSettings
from firstkd.section import Name, Positive, Section, listed


class EvaluateSettings(Section):
    micro_batch_size: Positive
    micro_batch_tokens: Positive
    """Maximum tokens per forward pass, padding included."""
    bootstrap_samples: Annotated[int, Field(ge=100)]
    open_text: OpenTextSettings
    """How examples without choices are answered, and when an answer counts as right."""
    models: Annotated[list[Name], Field(min_length=1)]
    """Names of the models, exports and ensembles to evaluate, in the order of the tables."""
    ensembles: Annotated[dict[Name, AnyEnsemble], Field(default_factory=dict)]
    """Several models, or samples of one, measured together by their mean probabilities."""

    def check_ensembles(self, models: set[str], taken: set[str]) -> None:
        """Raise ValueError unless ensembles consist of `models`, have names that are not `taken`,
        and are evaluated."""
        for name, ensemble in self.ensembles.items():
            key = f"evaluate.ensembles.{name}"
            if unknown := set(ensemble.models) - models:
                raise ValueError(
                    f"{key}: {listed(unknown)} is not a model that can be run here; "
                    f"allowed: {listed(models)}"
                )
            if name in taken:
                raise ValueError(f"{key}: {name!r} is the name of a model or export; change it")
            if name not in self.models:
                raise ValueError(f"{key}: add {name!r} to evaluate.models, or remove it here")
