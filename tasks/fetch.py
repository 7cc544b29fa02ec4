"""Fetch the base model and the data sets, each pinned by its SHA-256.

Reads   the sources in params.yaml (section fetch)
Writes  data/fetch/base/ (a model folder with safetensors), data/fetch/raw/NAME.EXT
Run as  python -m tasks.fetch   (normally through `dvc repro fetch`)
"""

import logging
import tempfile
from pathlib import Path

from tqdm import tqdm

from firstkd.data.settings import DatasetSource, Source
from firstkd.data.sources import fetch_source, file_name
from firstkd.errors import SourceError
from firstkd.files import atomic_folder
from firstkd.models.gguf import convert_gguf
from firstkd.settings import load_settings
from tasks.stage import run_stage

log = logging.getLogger(__name__)

RAW_SUFFIXES = {".jsonl", ".json", ".csv", ".tsv"}


def main(root: Path = Path(".")) -> None:
    settings = load_settings(root / "params.yaml").fetch
    with atomic_folder(root / "data/fetch") as folder:
        for name, dataset in tqdm(settings.datasets.items(), desc="data sets"):
            fetch_dataset(name, dataset, folder / "raw", root)
        log.info("fetching the model %s", settings.model.source)
        fetch_model(settings.model, folder / "base", root)


def fetch_dataset(name: str, dataset: DatasetSource, folder: Path, project: Path) -> None:
    """Bring one data set to `folder` under its name in params.yaml, keeping the file's suffix."""
    suffix = Path(file_name(dataset.source)).suffix
    if suffix not in RAW_SUFFIXES:
        raise SourceError(
            f"fetch.datasets.{name}: {dataset.source} is no data file; "
            f"expected one of {', '.join(sorted(RAW_SUFFIXES))}, also with .gz behind it"
        )
    fetch_source(dataset.source, dataset.sha256, folder / f"{name}{suffix}", project)


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
            f"fetch.model: {model.source} has no weights in safetensors; needed is a folder with "
            "*.safetensors, or one .gguf file. Pickled weights (.bin, .pt) are not read, since "
            "loading them runs the code inside: save the model again with save_pretrained."
        )
    for needed in ("config.json", "tokenizer*"):
        if not any(folder.glob(needed)):
            raise SourceError(f"fetch.model: {model.source} has no {needed}; it is incomplete")


if __name__ == "__main__":
    run_stage(main, "fetch")
