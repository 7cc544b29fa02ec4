"""The stage graph: dvc.yaml as it follows from params.yaml.

DVC cannot expand a list into a stage's dependencies, and here they depend on the names in
params.yaml. So the graph is written out in full, in the order in which the stages run.
"""

from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from firstkd.errors import ConfigError
from firstkd.files import atomic_file
from firstkd.settings import Settings
from tasks.code import code_of
from tasks.dvc_stage import Stage
from tasks.layout import learned_from, run_beside
from tasks.measuring_graph import measuring_stages
from tasks.signal_graph import signal_stages

HEAD = "# Written by `firstkd graph` from params.yaml and the imports of tasks/: edit those.\n"
LEARNING = "tasks.training"
"""Only the stages of models that learn depend on this."""
CODE_OF = {
    "keep": "tasks.chosen",
    "on_policy": "tasks.own_text",
    "adapts": "tasks.rounds",
    "bandit": "firstkd.terms.exp3",
}
"""The code behind settings that few models have: only their stages depend on it."""


def render(settings: Settings) -> str:
    """Return dvc.yaml: the same settings and code give the same text."""
    yaml = YAML()
    yaml.width = 1000
    yaml.indent(mapping=2, sequence=4, offset=2)
    text = StringIO()
    stages = {stage.name: stage.entry() for stage in stages_of(settings)}
    yaml.dump({"stages": stages, **PLOTS}, text)
    return HEAD + text.getvalue()


def _plot(name: str, x: str, y: str) -> dict[str, Any]:
    return {f"data/report/plots/{name}": {"x": x, "y": y, "template": "linear"}}


PLOTS = {
    "metrics": ["data/report/metrics.json"],
    "plots": [
        _plot("reliability", "confidence", "accuracy"),
        _plot("coverage", "coverage", "accuracy"),
        _plot("training", "step", "loss"),
    ],
}
"""Files that report writes for `dvc metrics diff`, `dvc plots diff` and `dvc exp show`."""


def write_graph(root: Path, settings: Settings) -> bool:
    """Write dvc.yaml if it is out of date; return whether it was."""
    text, file = render(settings), root / "dvc.yaml"
    if file.exists() and file.read_text(encoding="utf-8") == text:
        return False
    with atomic_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return True


def refresh_graph(root: Path, settings: Settings) -> None:
    """Write dvc.yaml, unless one exists without our first line: it was written by hand."""
    file = root / "dvc.yaml"
    if not file.exists() or file.read_text(encoding="utf-8").startswith(HEAD):
        write_graph(root, settings)


def check_graph(root: Path, settings: Settings) -> None:
    """Raise ConfigError unless dvc.yaml follows from params.yaml and the code."""
    file = root / "dvc.yaml"
    if not file.exists() or file.read_text(encoding="utf-8") != render(settings):
        raise ConfigError(
            f"{file} does not match params.yaml and the code (edited by hand, or out of date); "
            "run `firstkd graph` to rewrite it"
        )


def stages_of(settings: Settings) -> Iterator[Stage]:
    """Yield all stages in the order in which they run."""
    yield _fetch()
    writers = list(dict.fromkeys(write.by for write in settings.write.values()))
    for name in writers:
        yield _model(settings, [name])
    for name in settings.write:
        yield _write(settings, name)
    yield _prepare(settings)
    validated, trained = False, {*writers}
    for node in settings.lineage.order:
        if not validated and settings.lineage.reads(node):
            yield _validate(settings)
            validated = True
        if node.section == "models":
            peers = settings.lineage.peers(node.name)
            if not trained.issuperset(peers):
                yield _model(settings, peers)
            trained |= {*peers}
        elif node.name in settings.lineage.stored:
            yield from signal_stages(settings, node.name)
    yield from measuring_stages(settings)
    yield _report(settings)


def _fetch() -> Stage:
    what, sources = "Fetch the data sets, pinned by SHA-256", ["sources"]  # perhaps your own files
    code = code_of(["tasks.fetch"])
    return Stage("fetch", what, "python -m tasks.fetch", ["fetch"], code, sources, ["data/fetch"])


def _write(settings: Settings, name: str) -> Stage:
    write = settings.write[name]
    return Stage(
        f"write-{name}",
        f"Have the model “{write.by}” write questions like those of {write.like}",
        f"python -m tasks.write {name}",
        [
            *(f"write.{name}", "fetch.datasets", "prepare.fractions", "prompt", "validate"),
            *("capture", "runtime"),
        ],
        code_of(["tasks.write"]),
        ["data/fetch", f"data/model/{write.by}"],
        [f"data/write/{name}"],
    )


def _prepare(settings: Settings) -> Stage:
    what = "Bring all examples into one schema and split them"
    params = ["prepare", "fetch.datasets", *(["write"] if settings.write else [])]
    code, command = code_of(["tasks.prepare"]), "python -m tasks.prepare"
    inputs = ["data/fetch", *(f"data/write/{name}" for name in settings.write)]
    return Stage("prepare", what, command, params, code, inputs, ["data/prepare"])


def _validate(settings: Settings) -> Stage:
    return Stage(
        "validate",
        "Check the examples, and every model that was made elsewhere; a failure stops the pipeline",
        "python -m tasks.validate",
        # all that the checks before the first training look at
        [
            *("validate", "prompt", "models", "signals", "train", "evaluate"),
            *(["exports"] if settings.exports else []),
        ],
        code_of(["tasks.validate"]),
        ["data/prepare", *(f"data/model/{name}" for name in settings.lineage.roots)],
        ["data/validate"],
    )


def _model(settings: Settings, names: Sequence[str]) -> Stage:
    """The stage of one model, or of several that learn from one another in one training."""
    parts = [_model_reads(settings, name) for name in names]
    params, kinds, inputs = ([x for part in parts for x in part[i]] for i in range(3))
    learns = settings.models[names[0]].learn is not None
    verb, code = "Make", code_of(["tasks.model", *kinds], without=[LEARNING])
    if learns:
        models = [settings.models[name] for name in names]
        unused = [code for key, code in CODE_OF.items() if not any(getattr(m, key) for m in models)]
        verb, code = "Train", code_of(["tasks.model", LEARNING, *kinds], without=unused)
    what = f"the model “{names[0]}”"
    if len(names) > 1:
        what = f"{' and '.join(f'“{name}”' for name in names)} together, learning from one another"
    return Stage(
        f"model-{'-'.join(names)}",
        f"{verb} {what}",
        f"python -m tasks.model {'-'.join(names)}",
        list(dict.fromkeys(params)),
        code,
        inputs,
        [f"data/model/{name}" for name in names],
    )


def _model_reads(settings: Settings, name: str) -> tuple[list[str], list[str], list[str]]:
    """Return the settings, the modules of kinds and the files that a model is made from."""
    model = settings.models[name]
    kinds = [type(model.init).__module__]
    params, inputs = [f"models.{name}"], [f"data/model/{of}" for of in model.init.models]
    if not model.init.models:
        inputs.append("sources")
    if model.init.reads_examples or model.learn:
        params += ["prompt", "runtime"]
        inputs += [*map(str, learned_from(Path(), settings)), "data/validate/summary.json"]
    for term in (model.learn or {}).values():
        kinds.append(type(term).__module__)
        if term.signal is None:
            continue
        kinds.append(type(settings.signals[term.signal]).__module__)
        if term.signal in settings.lineage.stored:
            inputs.append(f"data/signal/{term.signal}/train")
            if term.other_tokens:  # the tokenizer that cut them
                inputs.append(f"data/model/{settings.lineage.read_with(term.signal)}")
            if term.signal not in settings.lineage.recalibrated:
                continue
            inputs.append(f"data/calibrate/{term.signal}/{term.recalibration}.json")
        else:
            params.append(f"signals.{term.signal}")
            inputs += map(str, run_beside(Path(), settings, name, term.signal))
    inputs += [f"data/signal/{of}/train" for of in (model.keep.signals if model.keep else ())]
    if model.adapts:
        inputs.append("data/prepare/calibration.parquet")
    if model.learn is not None:
        params.append(f"train.{model.train}")
    return params, kinds, inputs


def _report(settings: Settings) -> Stage:
    evaluated = settings.evaluate.models
    of_models = {name: settings.models[name] for name in settings.measured_models}
    trained = [name for name, model in of_models.items() if model.learn is not None]
    return Stage(
        "report",
        "Put the models side by side in one page",
        "python -m tasks.report",
        ["evaluate", "models", "record.student", "runtime.seed", "serve.cost", "signals"],
        code_of(["tasks.report"]),
        [
            "tasks/templates",
            "data/prepare",
            *(f"data/evaluate/{name}" for name in evaluated),
            *(f"data/model/{name}/training.jsonl" for name in trained),
            *(f"data/signal/{name}/metrics.json" for name in settings.lineage.stored),
        ],
        ["data/report"],
    )
