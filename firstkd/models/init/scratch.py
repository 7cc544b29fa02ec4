"""A model of another's family that starts from random weights, at any width."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from firstkd.errors import ConfigError
from firstkd.models.init.base import Given, Init
from firstkd.section import Name, Positive


class ScratchInit(Init):
    kind: Literal["scratch"]
    starts_anew: ClassVar[bool] = True

    of: Name
    hidden_size: Positive
    """The numbers of heads and feed-forward neurons scale with it; a head keeps its size."""
    layers: Positive | None = None
    """Null for as many as the other model has."""
    base_width: Positive | None = None
    """µP: the hidden size at which the learning rate was tuned; null for the family's rates and
    initialisation at every width."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @property
    def models(self) -> tuple[str, ...]:
        return (self.of,)

    def layers_of(self, present: int, key: str = "") -> int:
        if self.layers is not None and self.layers > present:
            raise ConfigError(
                f"{key}layers: {self.layers}, but {self.of} has {present}; set at most {present}"
            )
        return self.layers or present

    def width_of(self, present: int) -> int:
        return self.hidden_size

    def check(self, model: Any) -> None:
        from firstkd.models.width import shape_at

        shape_at(model.config, self.hidden_size)

    def make(self, folder: Path, given: Given) -> None:
        from firstkd.models.folders import load_tokenizer, read_config, save_model
        from firstkd.models.width import random_model

        source = given.models[self.of]
        config = read_config(source)
        layers = self.layers_of(config.num_hidden_layers)
        model = random_model(config, self.hidden_size, layers, self.base_width, self.seed)
        save_model(model, load_tokenizer(source), folder)
