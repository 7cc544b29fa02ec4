"""What every kind of export has in common. An export is its own settings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from firstkd.section import Name, Section


@dataclass(frozen=True)
class Exported:
    """What is written to a file."""

    model: Any
    """In float32, its temperature folded in if that is exact."""
    tokenizer: Any
    facts: str
    """JSON that travels in the file's own metadata: temperature, prompt, threshold."""


class Export(Section):
    kind: str
    file_name: ClassVar[str]
    runtime: ClassVar[str]
    """The package through which firstkd/exports/reader.py, shipped as answer.py, asks it."""
    beside: ClassVar[tuple[str, ...]] = ("tokenizer.json",)
    """Further files whose hash is checked when it is opened."""

    of: Name
    """The model, which has to be evaluated: that fits its temperature."""
    license: Annotated[str, Field(min_length=1)]
    """SPDX identifier of the licence of the model that it goes back to, e.g. Apache-2.0."""

    weights: str
    """How they are stored; each kind has its own."""

    def check(self, config: Any) -> None:
        """Raise ConfigError if the format has no place for a model with this config."""
        raise NotImplementedError

    def write(self, exported: Exported, file: Path) -> None:
        """Write the model as one file: the same model gives the same bytes.

        Its tokenizer and configuration lie beside it already.
        """
        raise NotImplementedError


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Return every id that ends a text, the tokenizer's own first."""
    more = model.generation_config.eos_token_id
    listed = more if isinstance(more, list) else [more]
    return [*dict.fromkeys(i for i in (tokenizer.eos_token_id, *listed) if i is not None)]
