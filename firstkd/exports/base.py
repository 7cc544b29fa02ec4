"""What all kinds of export have in common. An export is also its own settings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from firstkd.section import Name, Section


@dataclass(frozen=True)
class Exported:
    """What an export writes to its file."""

    model: Any
    """In float32, with its temperature folded into the weights if that is exact."""
    tokenizer: Any
    facts: str
    """JSON stored in the file's own metadata: temperature, prompt, threshold."""


class Export(Section):
    kind: str
    file_name: ClassVar[str]
    runtime: ClassVar[str]
    """The package with which firstkd/exports/reader.py, shipped as answer.py, runs it."""
    beside: ClassVar[tuple[str, ...]] = ("tokenizer.json",)
    """Other files whose hashes are checked when the export is opened."""

    of: Name
    """The model; it must be evaluated, since that fits its temperature."""
    license: Annotated[str, Field(min_length=1)]
    """SPDX identifier of the original model's licence, e.g. Apache-2.0."""

    weights: str
    """How they are stored; each kind has its own formats."""

    def check(self, config: Any, tokenizer: Any) -> None:
        """Raise ConfigError if the format cannot hold a model with this config and tokenizer."""
        raise NotImplementedError

    def write(self, exported: Exported, file: Path) -> None:
        """Write the model as one file; the same model gives the same bytes.

        Its tokenizer and configuration are already beside it.
        """
        raise NotImplementedError


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Return every id that ends a text, the tokenizer's own first."""
    more = model.generation_config.eos_token_id
    listed = more if isinstance(more, list) else [more]
    return [*dict.fromkeys(i for i in (tokenizer.eos_token_id, *listed) if i is not None)]
