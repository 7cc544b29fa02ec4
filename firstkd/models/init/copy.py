"""A model that starts where another ended."""

import shutil
from pathlib import Path
from typing import ClassVar, Literal

from firstkd.models.init.base import Given, Init
from firstkd.section import Name


class CopyInit(Init):
    kind: Literal["copy"]
    can_learn: ClassVar[bool] = True

    of: Name

    @property
    def models(self) -> tuple[str, ...]:
        return (self.of,)

    def make(self, folder: Path, given: Given) -> None:
        shutil.copytree(given.models[self.of], folder, dirs_exist_ok=True)
