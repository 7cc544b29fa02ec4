"""A model that was made elsewhere: another pretrained student, or a ready-made teacher."""

import os
from pathlib import Path
from typing import Literal

from pydantic import field_validator

from firstkd.data.settings import Source
from firstkd.errors import SourceError
from firstkd.models.init.base import Given, Init


class SourceInit(Source, Init):
    kind: Literal["source"]
    chat_template: str | None = None
    """A Jinja file in sources/ that replaces the model's own chat template."""

    @field_validator("chat_template")
    @classmethod
    def _changes_of_the_template_are_noticed(cls, path: str | None) -> str | None:
        if path and not Path(os.path.normpath(path)).is_relative_to("sources"):
            raise ValueError(f"{path} lies outside sources/, where changes would go unnoticed")
        return path

    def make(self, folder: Path, given: Given) -> None:
        from firstkd.models.source import fetch_model

        fetched = folder / "fetched"  # where a source that is one file leaves no folder either
        fetch_model(self, fetched, given.project)
        for path in fetched.iterdir():
            path.replace(folder / path.name)
        fetched.rmdir()
        if self.chat_template:
            file = given.project / self.chat_template
            try:
                template = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise SourceError(f"chat_template: {file} cannot be read ({error})") from error
            # transformers prefers this file to what tokenizer_config.json says
            (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
