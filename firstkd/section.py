"""What every section of params.yaml has in common: strict keys, frozen values, common types."""

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]


Port = Annotated[int, Field(gt=0, lt=2**16)]


Share = Annotated[float, Field(ge=0, le=1)]


Weight = Annotated[float, Field(ge=0)]


Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
"""Becomes a file name, and part of others."""


RegisteredName = Annotated[str, Field(pattern=r"^[^/:.%\"']+$")]
"""Name of a model in MLflow's registry."""


Precision = Literal["auto", "bf16", "fp32"]
"""`auto`: bf16 on a GPU, or on a CPU with instructions for it, else fp32."""


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _without_password(url: str) -> str:
    if urlsplit(url).username is not None:
        raise ValueError("contains a user name or password; put the key in an environment variable")
    return url


ServerUrl = Annotated[str, Field(pattern=r"^https?://[^\s]+$"), AfterValidator(_without_password)]
"""Address of a server with OpenAI's interface, up to and including its /v1."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _keys_are_known(cls, values: Any) -> Any:
        allowed = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = sorted(set(values) - allowed, key=str) if isinstance(values, dict) else []
        if unknown:
            found = ", ".join(f"{key!r} (value {values[key]!r})" for key in unknown)
            raise ValueError(f"unknown key {found}; allowed: {listed(allowed)}")
        return values


def listed(names: set[str]) -> str:
    return ", ".join(sorted(names))
