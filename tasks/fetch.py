"""Fetch the data sets, each pinned by its SHA-256.

Reads   the sources in params.yaml (section fetch)
Writes  data/fetch/NAME.EXT
Run as  python -m tasks.fetch   (normally through `dvc repro fetch`)
"""

from pathlib import Path

from tqdm import tqdm

from firstkd.data.records import SUFFIXES
from firstkd.data.settings import DatasetSource
from firstkd.data.sources import fetch_source, file_name
from firstkd.errors import SourceError
from firstkd.files import atomic_folder
from firstkd.settings import load_settings
from tasks.stage import run_stage


def main(root: Path = Path(".")) -> None:
    settings = load_settings(root / "params.yaml").fetch
    datasets = tqdm(settings.datasets.items(), desc="data sets")
    with atomic_folder(root / "data/fetch") as folder, datasets:  # closed on errors, too
        for name, dataset in datasets:
            fetch_dataset(name, dataset, folder, root)


def fetch_dataset(name: str, dataset: DatasetSource, folder: Path, project: Path) -> None:
    """Fetch one data set to `folder` under its name in params.yaml, keeping the file's suffix."""
    suffix = Path(file_name(dataset.source)).suffix.lower()
    if suffix not in SUFFIXES:
        raise SourceError(
            f"fetch.datasets.{name}: {dataset.source} is not a data file; "
            f"expected one of {', '.join(sorted(SUFFIXES))}, optionally followed by .gz"
        )
    target = folder / f"{name}{suffix}"
    fetch_source(dataset.source, dataset.sha256, target, project)
    if target.is_dir():
        raise SourceError(
            f"fetch.datasets.{name}: {dataset.source} is a folder; name the data file in it"
        )


if __name__ == "__main__":
    run_stage(main, "fetch")
