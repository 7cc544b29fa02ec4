"""The stages that measure models, ensembles and exports, and those that write the exports."""

from collections.abc import Iterator

from firstkd.ensembles.base import Ensemble
from firstkd.settings import Settings
from tasks.code import code_of
from tasks.dvc_stage import EVALUATE_PARAMS, Stage

PASSES = ["evaluate.micro_batch_size", "evaluate.micro_batch_tokens"]
"""Settings of forward passes."""
ASKING = "tasks.evaluate_served"
"""Only the stages that measure models behind a server depend on this."""


def measuring_stages(settings: Settings) -> Iterator[Stage]:
    for name in settings.measured_models:
        yield _evaluate(name, settings.models[name].init.is_served)
    for name in settings.measured_ensembles:
        yield _evaluate_ensemble(name, settings.evaluate.ensembles[name])
    for name in settings.exports:
        yield _export(settings, name)
    for name in settings.measured_exports:
        yield _evaluate_export(name)


def _evaluate(name: str, is_served: bool) -> Stage:
    return Stage(
        f"evaluate-{name}",
        f"Measure the model “{name}” on the test sets, and fit its own temperature",
        f"python -m tasks.evaluate {name}",
        [*EVALUATE_PARAMS, *PASSES, "evaluate.open_text"],
        code_of(["tasks.evaluate"], without=[] if is_served else [ASKING]),
        ["data/prepare", f"data/model/{name}"],
        [f"data/evaluate/{name}"],
    )


def _evaluate_ensemble(name: str, ensemble: Ensemble) -> Stage:
    members = ", ".join(f"“{member}”" for member in ensemble.models)
    return Stage(
        f"evaluate-{name}",
        f"Measure {members} as the ensemble “{name}”",
        f"python -m tasks.evaluate_ensemble {name}",
        [*EVALUATE_PARAMS, *PASSES, f"evaluate.ensembles.{name}"],
        code_of(["tasks.evaluate_ensemble", type(ensemble).__module__]),
        ["data/prepare", *(f"data/model/{member}" for member in ensemble.models)],
        [f"data/evaluate/{name}"],
    )


def _export(settings: Settings, name: str) -> Stage:
    export = settings.exports[name]
    origins = dict.fromkeys([export.of, settings.lineage.root(export.of)])
    return Stage(
        f"export-{name}",
        f"Write the model “{export.of}” as {export.kind}, with its temperature",
        f"python -m tasks.export {name}",
        [f"exports.{name}", "fetch.datasets", "runtime", *(f"models.{of}" for of in origins)],
        code_of(["tasks.export", type(export).__module__]),
        [f"data/model/{export.of}", f"data/evaluate/{export.of}"],
        [f"data/export/{name}"],
    )


def _evaluate_export(name: str) -> Stage:
    return Stage(
        f"evaluate-{name}",
        f"Measure the export “{name}” in its own runtime, and fit its temperature there",
        f"python -m tasks.evaluate_export {name}",
        EVALUATE_PARAMS,
        code_of(["tasks.evaluate_export"]),
        ["data/prepare", f"data/export/{name}"],
        [f"data/evaluate/{name}"],
    )
