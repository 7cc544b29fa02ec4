"""The stages of exports: each is written, and those of `evaluate.models` are measured."""

from collections.abc import Iterator

from firstkd.settings import Settings
from tasks.code import code_of
from tasks.dvc_stage import EVALUATE_PARAMS, Stage


def export_stages(settings: Settings) -> Iterator[Stage]:
    for name in settings.exports:
        yield _export(settings, name)
    for name in settings.measured_exports:
        yield _evaluate(name)


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


def _evaluate(name: str) -> Stage:
    return Stage(
        f"evaluate-{name}",
        f"Measure the export “{name}” in its own runtime, and fit its temperature there",
        f"python -m tasks.evaluate_export {name}",
        EVALUATE_PARAMS,
        code_of(["tasks.evaluate_export"]),
        ["data/prepare", f"data/export/{name}"],
        [f"data/evaluate/{name}"],
    )
