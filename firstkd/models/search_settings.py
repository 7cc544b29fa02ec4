"""Settings of the search for a student's shape."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from firstkd.section import Name, Positive, Section, listed

if TYPE_CHECKING:
    from firstkd.models.settings import ModelSettings


class SearchSettings(Section):
    of: Name
    """The model that candidates are cut from."""
    like: Name
    """The model whose terms they learn with."""
    train: Name
    """The section of `train` for candidates, a short one."""
    max_parameters: Positive
    """Limit for each candidate, which is as wide as this allows for its number of layers."""
    min_layers: Positive
    trials: Positive

    def check(self, models: "Mapping[str, ModelSettings]", sections: Collection[str]) -> None:
        """Raise ValueError, naming the key, for a name that is unknown or cannot be used here."""
        here = {name for name, model in models.items() if not model.init.is_served}
        learning = {name for name, model in models.items() if model.learn is not None}
        known = (("of", here), ("like", learning), ("train", {*sections}))
        for key, allowed in known:
            if (name := getattr(self, key)) not in allowed:
                raise ValueError(f"search.{key}: {name!r}; allowed: {listed(allowed)}")
