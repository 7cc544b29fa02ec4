"""The stages of a signal: store it and, if it has decisions, recalibrate it."""

from collections.abc import Iterator
from pathlib import Path

from firstkd.settings import Settings
from tasks.code import code_of
from tasks.dvc_stage import Stage
from tasks.layout import learned_from, temperature_files

ASKING = "tasks.served"
"""The module that only signals of a model behind a server depend on."""
COMBINING = "tasks.combine"
"""The module that only signals computed from other signals depend on."""


def signal_stages(settings: Settings, name: str) -> Iterator[Stage]:
    yield _signal(settings, name)
    if name in settings.lineage.recalibrated:
        yield _calibrate(settings, name)


def _signal(settings: Settings, name: str) -> Stage:
    signal = settings.signals[name]
    inputs = [f"data/model/{of}" for of in signal.models]
    inputs += [f"data/signal/{of}" for of in signal.signals]
    inputs += map(str, temperature_files(Path(), signal))
    unused = [] if signal.signals else [COMBINING]
    if not any(settings.models[of].init.is_served for of in signal.models):
        unused.append(ASKING)
    examples = ["data/prepare/calibration.parquet", *map(str, learned_from(Path(), settings))]
    return Stage(
        f"signal-{name}",
        f"Store the signal “{name}” of {', '.join([*signal.models, *signal.signals])}",
        f"python -m tasks.signal {name}",
        [f"signals.{name}", "capture", "prompt", "runtime"],
        code_of(["tasks.signal", type(signal).__module__], without=unused),
        inputs + examples,
        [f"data/signal/{name}"],
    )


def _calibrate(settings: Settings, name: str) -> Stage:
    return Stage(
        f"calibrate-{name}",
        f"Fit the recalibrations of the signal “{name}” on the calibration split",
        f"python -m tasks.calibrate {name}",
        ["calibrate", f"signals.{name}", "prompt", "runtime"],
        code_of(["tasks.calibrate", type(settings.signals[name]).__module__]),
        [
            f"data/signal/{name}/calibration",
            f"data/model/{settings.lineage.read_with(name)}",  # its tokenizer
            "data/prepare/calibration.parquet",
        ],
        [f"data/calibrate/{name}"],
    )
