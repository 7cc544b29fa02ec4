"""Bring a model that was made elsewhere to a folder."""

import tempfile
from pathlib import Path

from firstkd.data.settings import Source
from firstkd.data.sources import fetch_source, file_name
from firstkd.errors import SourceError
from firstkd.models.gguf import convert_gguf


def fetch_model(model: Source, folder: Path, project: Path) -> None:
    """Bring the model to `folder`, converted when it is one GGUF file.

    Raises SourceError when there are no weights in safetensors.
    """
    if file_name(model.source).endswith(".gguf"):
        folder.mkdir(parents=True)
        with tempfile.TemporaryDirectory(prefix=".gguf.", dir=folder.parent) as scratch:
            file = Path(scratch) / file_name(model.source)
            fetch_source(model.source, model.sha256, file, project)
            convert_gguf(file, folder)
    else:
        fetch_source(model.source, model.sha256, folder, project)
    if not folder.is_dir() or not any(folder.glob("*.safetensors")):
        raise SourceError(
            f"{model.source} has no weights in safetensors; needed is a folder with "
            "*.safetensors, or one .gguf file. Pickled weights (.bin, .pt) are not read, since "
            "loading them runs the code inside: save the model again with save_pretrained."
        )
    for needed in ("config.json", "tokenizer*"):
        if not any(folder.glob(needed)):
            raise SourceError(f"{model.source} has no {needed}; it is incomplete")
