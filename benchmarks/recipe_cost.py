"""What a recipe costs on one GPU: the passes that its params.yaml needs, by docs/scaling.md.

Counts each training (6 operations per parameter and token, for every epoch) and each pass of a
model whose signal is stored or watched (2 operations), at the device's assumed rate. The file's
first model that is made from no other, and those that keep its size, have `--large` parameters;
those cut from it or from another source have `--small`. A teacher behind a server costs nothing
here. Loading, evaluation and exports are left out. Prints one JSON line.

Run as  python -m benchmarks.recipe_cost [examples/FILE.yaml] [--large 7e9] [--small 1e9]
            [--examples 10000] [--tokens 100] [--teraflops 400]
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from benchmarks.cost_model import CAPTURE_SHARE
from firstkd.models.init.smaller import SmallerInit
from firstkd.settings import Settings, load_settings

SIZES = {"large": 7e9, "small": 1e9, "examples": 1e4, "tokens": 100, "teraflops": 400}
"""What the headers in examples/ assume: parameters, examples, tokens in each, and 10¹² operations
per second that a GPU sustains."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipe_cost")
    parser.add_argument("params", type=Path, nargs="?", default=Path("params.yaml"))
    for name, value in SIZES.items():
        parser.add_argument(f"--{name}", type=float, default=value)
    given = vars(parser.parse_args())
    settings = load_settings(given.pop("params"))
    print(json.dumps({"gpu_minutes": round(minutes(settings, given), 1)}))


def minutes(settings: Settings, sizes: Mapping[str, float] = SIZES) -> float:
    """Return the minutes that trainings and captures take on one GPU."""
    operations = 0.0  # per token of the data
    lineage = settings.lineage
    for name, model in settings.models.items():
        if model.train is None:
            continue
        epochs, peers = settings.train[model.train].epochs, lineage.peers(name)
        operations += 6 * epochs * parameters(settings, name, sizes)
        for signal in (settings.signals[used] for used in model.signals):
            if signal.is_live:
                watched = [of for of in signal.models if of not in peers]
                operations += 2 * epochs * sum(parameters(settings, of, sizes) for of in watched)
    for signal in lineage.stored.values():
        run = sum(parameters(settings, of, sizes) for of in signal.models)
        operations += 2 * run / CAPTURE_SHARE
    tokens = sizes["examples"] * sizes["tokens"]
    return operations * tokens / (sizes["teraflops"] * 1e12) / 60


def parameters(settings: Settings, name: str, sizes: Mapping[str, float]) -> float:
    """Return how many parameters a model is assumed to have; 0 behind a server."""
    init = settings.models[name].init
    if init.is_served:
        return 0.0
    if not init.models:
        return sizes["large" if name == settings.lineage.roots[0] else "small"]
    if isinstance(init, SmallerInit):
        return sizes["small"]
    return parameters(settings, init.models[0], sizes)


if __name__ == "__main__":
    main()
