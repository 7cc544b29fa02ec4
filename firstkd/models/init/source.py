"""A model that was made elsewhere: another pretrained student, or a teacher that is ready."""

from pathlib import Path
from typing import Literal

from firstkd.data.settings import Source
from firstkd.models.init.base import Given, Init


class SourceInit(Source, Init):
    kind: Literal["source"]

    def make(self, folder: Path, given: Given) -> None:
        from firstkd.models.source import fetch_model

        fetched = folder / "fetched"  # where a source that is one file leaves no folder either
        fetch_model(self, fetched, given.project)
        for path in fetched.iterdir():
            path.replace(folder / path.name)
        fetched.rmdir()
