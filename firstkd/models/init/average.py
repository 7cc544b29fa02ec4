"""A model whose weights are the mean of several models trained from the same start."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from firstkd.models.init.base import Given, Init
from firstkd.section import Name


class AverageInit(Init):
    """A uniform soup (Wortsman et al. 2022), which costs no more to run than a single model."""

    kind: Literal["average"]

    of: Annotated[list[Name], Field(min_length=2)]
    """Models trained from the same start, and so of the same shape."""

    @field_validator("of")
    @classmethod
    def _each_counts_once(cls, of: list[str]) -> list[str]:
        if len(set(of)) < len(of):
            raise ValueError(f"names a model twice: {', '.join(of)}")
        return of

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self.of)

    def make(self, folder: Path, given: Given) -> None:
        import torch

        from firstkd.models.folders import load_model, load_tokenizer, save_model

        first, *others = (given.models[name] for name in self.of)
        mean = load_model(first, "fp32")
        with torch.no_grad():
            for number, other in enumerate(others, start=2):
                weights = dict(load_model(other, "fp32").named_parameters())
                for name, values in mean.named_parameters():
                    values.lerp_(weights[name], 1 / number)
        save_model(mean, load_tokenizer(first), folder)
