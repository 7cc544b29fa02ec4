"""Make a named model: initialise it, and train it if it learns.

Models that learn from one another are trained together and named together, as A-B.

Reads   what models.NAME of params.yaml names: data/model/OTHER/, data/signal/SIGNAL/train/ with
        data/calibrate/SIGNAL/, data/prepare/train.parquet
Writes  data/model/NAME/ (a model folder, with training.jsonl if it learns)
Run as  python -m tasks.model NAME   (normally through `dvc repro model-NAME`)

It starts several processes itself if machine.processes says so.
"""

from pathlib import Path

from firstkd.errors import ConfigError, about
from firstkd.files import atomic_folder
from firstkd.models.init.base import Given
from firstkd.reproducibility import deterministic
from firstkd.settings import load_settings
from firstkd.train.distributed import present_ranks
from tasks.layout import learned_from, model_folder
from tasks.stage import run_stage


def main(root: Path, name: str) -> None:
    settings = load_settings(root / "params.yaml")
    names = name.split("-")
    for each in names:
        if each not in settings.models:
            raise ConfigError(f"there is no models.{each}; allowed: {', '.join(settings.models)}")
    if names != (peers := settings.lineage.peers(names[0])):
        raise ConfigError(f"models.{names[0]} is made by `python -m tasks.model {'-'.join(peers)}`")
    deterministic(settings.runtime.seed, settings.runtime.threads)
    given = Given(
        project=root,
        models={other: model_folder(root, other) for other in settings.models},
        examples=learned_from(root, settings),
        prompt=settings.prompt,
    )
    if settings.models[names[0]].learn is not None:
        from tasks.training import learn

        learn(root, settings, names, given)
        return
    if present_ranks().is_first:  # one process makes a start
        with atomic_folder(model_folder(root, name)) as folder, about(f"models.{name}"):
            settings.models[name].init.make(folder, given)


if __name__ == "__main__":
    run_stage(main, "model", "name", lambda machine: True)
