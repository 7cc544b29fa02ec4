"""Where everything is under data/: one folder per stage, named as in params.yaml."""

from pathlib import Path

from firstkd.settings import Settings
from firstkd.signals.base import Signal


def prepared(root: Path, split: str) -> Path:
    return root / "data/prepare" / f"{split}.parquet"


def learned_from(root: Path, settings: Settings) -> list[Path]:
    """Return the files of examples that models learn from: labelled ones, then any others."""
    splits = ["train", *(["unlabelled"] if has_unlabelled(settings) else [])]
    return [prepared(root, split) for split in splits]


def has_unlabelled(settings: Settings) -> bool:
    """Return whether there are questions that only the teacher labels."""
    roles = {dataset.role for dataset in settings.fetch.datasets.values()}
    return "unlabelled" in roles or bool(settings.write) or settings.prepare.augment.is_asked_for


def written_folder(root: Path, name: str) -> Path:
    return root / "data/write" / name


def model_folder(root: Path, name: str) -> Path:
    return root / "data/model" / name


def run_beside(root: Path, settings: Settings, name: str, signal: str) -> list[Path]:
    """Return the folders that the training of a model reads for a live signal.

    They are those of the signal's models, which run beside it, and of the models at which it lost
    layers. A model that learns in the same training has none yet: its initial model is read.
    """
    models = settings.signals[signal].models
    cuts = [cut for of in models for cut in settings.lineage.cuts(name, of) or ()]
    before = {of: before_training(root, settings, name, of) for of in models}
    return [*dict.fromkeys([*before.values(), *(model_folder(root, cut) for cut in cuts)])]


def before_training(root: Path, settings: Settings, name: str, other: str) -> Path:
    """Return the folder of `other` as it is when the training of `name` begins."""
    if other in settings.lineage.peers(name):
        (other,) = settings.models[other].init.models
    return model_folder(root, other)


def signal_folder(root: Path, name: str, split: str | None = None) -> Path:
    folder = root / "data/signal" / name
    return folder if split is None else folder / split


def recalibration_file(root: Path, signal: str, kind: str) -> Path:
    return root / "data/calibrate" / signal / f"{kind}.json"


def temperature_files(root: Path, signal: Signal) -> list[Path]:
    """Return the files of the temperatures that a signal is computed with: its members'."""
    members = signal.signals if signal.tempers else ()
    return [recalibration_file(root, member, "temperature") for member in members]


def evaluation_folder(root: Path, model: str) -> Path:
    return root / "data/evaluate" / model


def export_folder(root: Path, name: str) -> Path:
    return root / "data/export" / name


def log_folder(root: Path, stage: str) -> Path:
    """Return where a stage (`model-first`) logs what is not reproducible: times, live curves."""
    return root / "logs" / stage
