"""dvc.yaml follows from params.yaml and the imports of the code, and nothing else writes it."""

import ast
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from firstkd.errors import ConfigError
from firstkd.models.init import kinds as inits
from firstkd.settings import Settings, load_settings
from firstkd.signals import kinds as signals
from firstkd.signals.choices import OfChoices
from firstkd.terms import kinds as terms
from tasks.graph import check_graph, refresh_graph, render, stages_of, write_graph
from tests.tiny import REPOSITORY

SETTINGS = load_settings(REPOSITORY / "params.yaml")
STAGES = {stage.name: stage for stage in stages_of(SETTINGS)}
KINDS = (*inits.KINDS, *signals.KINDS, *terms.KINDS)
FIRSTKD = Path(sys.executable).with_name("firstkd")
TOKENS = {"kind": "tokens", "select": {"kind": "top_k", "k": 5}}


def everything(tmp_path: Path) -> Settings:
    """The shipped settings with a model or signal of each kind beside them."""
    yaml = YAML()
    params = yaml.load(REPOSITORY / "params.yaml")
    params["models"]["other"] = {"init": {"kind": "source", "source": "path:sources/other"}}
    params["signals"]["others"] = {"kind": "choices", "of": "other", "view": {"shots": 4}}
    params["write"] = {"more": {"by": "other", "like": "commonsenseqa", "draws": 9}}
    params["signals"]["pooled"] = {"kind": "mean", "of": ["choices", "others"]}
    params["signals"]["drawn"] = {
        "kind": "tokens",
        "of": "teacher",
        "select": {"kind": "sample", "draws": 12},
    }
    params["signals"]["ensemble"] = {"kind": "ensemble", "of": ["choices", "others"]}
    params["models"]["teacher"]["leave_out"] = {"fold": 0, "of": 2}
    params["models"]["shallow"] = {"init": {"kind": "prune", "of": "base", "layers": 20}}
    params["models"]["narrow"] = {
        "init": {"kind": "narrow", "of": "shallow", "intermediate_size": 1024}
    }
    params["models"]["averaged"] = {"init": {"kind": "average", "of": ["sft", "first"]}}
    params["models"]["random"] = {
        "init": {"kind": "scratch", "of": "base", "hidden_size": 192, "base_width": 576}
    }
    params["models"]["substitute"] = {
        "init": {"kind": "copy", "of": "base"},
        "train": "finetune",
        "learn": {"gold": {"loss": {"kind": "focal", "gamma": 3}}},
        "leave_out": {"fold": 1, "of": 2},
    }
    params["signals"]["substitutes"] = {"kind": "choices", "of": "substitute"}
    params["signals"]["unseen"] = {"kind": "out_of_fold", "of": ["choices", "substitutes"]}
    params["models"]["pupil"] = {
        "init": {"kind": "copy", "of": "start"},
        "train": "finetune",
        "learn": {
            "gold_choice": {},
            "adaptive_focal": {},
            "pooled": {"kind": "choice_kl", "from": "pooled"},
            "spread": {"kind": "dirichlet", "from": "ensemble"},
            "harder": {"kind": "curriculum_kl", "from": "pooled"},
            "drawn": {"kind": "sparse_kl", "from": "drawn", "recalibrate": "none", "share": 0.2},
        },
    }
    params["models"]["served"] = {
        "init": {
            "kind": "server",
            "url": "http://127.0.0.1:8000/v1",
            "model": "large",
            "fingerprint": "1",
            "tokenizer": "base",
            "ask": "letters",
        }
    }
    params["signals"]["tokens"] = {**TOKENS, "of": "teacher"}
    params["models"]["published"] = {
        "init": {"kind": "copy", "of": "start"},
        "train": "finetune",
        "learn": {"sparse_kl": {"from": "tokens"}},
    }
    params["signals"]["other_tokens"] = {**TOKENS, "of": "other"}
    params["models"]["across"] = {
        "init": {"kind": "copy", "of": "start"},
        "train": "finetune",
        "learn": {"alm": {"from": "other_tokens"}, "uld": {"from": "other_tokens"}},
        "bandit": {"arms": ["alm", "uld"]},
    }
    params["signals"]["letters"] = {"kind": "choices", "of": "served"}
    params["signals"]["said"] = {
        "kind": "answers",
        "of": "served",
        "select": {"kind": "top_k", "k": 5},
        "max_new_tokens": 48,
    }
    params["models"]["listener"] = {
        "init": {"kind": "copy", "of": "start"},
        "train": "finetune",
        "learn": {"said": {"kind": "sparse_kl", "from": "said", "recalibrate": "none"}},
    }
    params["signals"]["states"] = {"kind": "hidden_states", "of": "teacher"}
    params["models"]["follower"] = {
        "init": {"kind": "copy", "of": "start"},
        "train": "finetune",
        "learn": {
            "answers": {"kind": "hard_choice", "from": "choices"},
            "states": {"kind": "hidden", "from": "states", "layers": "kept"},
            "edges": {"kind": "relation", "from": "states", "form": "distance"},
            "change": {"kind": "flow", "from": "states", "form": "length"},
            "attention": {"kind": "attention", "from": "states", "layers": "last", "heads": 8},
            "adversary": {"kind": "adversarial", "from": "states"},
        },
    }
    params["models"]["rounded"] = {
        "init": {"kind": "quantise", "of": "start", "weights": "q4_0"},
        "train": "finetune",
        "learn": {"gold": {}},
    }
    params["signals"]["kept"] = {"kind": "hidden_states", "of": "teacher", "live": False}
    params["models"]["reader"] = {
        "init": {"kind": "copy", "of": "start"},
        "train": "finetune",
        "learn": {"states": {"kind": "hidden", "from": "kept"}},
    }
    for name, start, other in (("left", "start", "right"), ("right", "base", "left")):
        params["models"][name] = {
            "init": {"kind": "copy", "of": start},
            "train": "finetune",
            "learn": {"other": {"kind": "choice_kl", "from": f"of_{other}", "recalibrate": "none"}},
        }
        params["signals"][f"of_{name}"] = {"kind": "choices", "of": name, "live": True}
    params["evaluate"]["models"] += ["pupil", "browser", "deep"]
    params["evaluate"]["ensembles"] = {"deep": ["first", "pupil"]}
    whole = {"of": "first", "license": "Apache-2.0"}
    params["exports"] = {
        "browser": {"kind": "onnx", "weights": "int8", **whole},
        "llama": {"kind": "gguf", "weights": "q8_0", **whole},
        "vllm": {"kind": "safetensors", "weights": "int8", **whole},
    }
    yaml.dump(params, tmp_path / "params.yaml")
    return load_settings(tmp_path / "params.yaml")


def test_a_live_signal_has_no_stage_and_its_model_is_read_by_the_training(tmp_path):
    stages = {stage.name: stage for stage in stages_of(everything(tmp_path))}
    assert not {"signal-states", "calibrate-states"} & stages.keys()
    deps = stages["model-follower"].entry()["deps"]
    assert {"data/model/teacher", "data/model/start"} <= set(deps)
    assert not [dep for dep in deps if "states" in dep and not dep.endswith(".py")]
    assert "signals.states" in stages["model-follower"].params


def test_stored_states_have_a_stage_and_nothing_that_recalibrates_them(tmp_path):
    stages = {stage.name: stage for stage in stages_of(everything(tmp_path))}
    assert "signal-kept" in stages and "calibrate-kept" not in stages
    deps = stages["model-reader"].entry()["deps"]
    assert "data/signal/kept/train" in deps and "data/model/teacher" not in deps


def code(stage: Any) -> set[str]:
    return {dep for dep in stage.entry()["deps"] if dep.endswith(".py")}


def file_of(kind: type) -> str:
    return f"{kind.__module__.replace('.', '/')}.py"


def test_the_shipped_graph_is_the_rendered_one():
    text = (REPOSITORY / "dvc.yaml").read_text(encoding="utf-8")
    assert text == render(SETTINGS) == render(load_settings(REPOSITORY / "params.yaml"))


def test_stages_run_in_the_order_in_which_they_are_written(tmp_path):
    stages = [stage.entry() for stage in stages_of(everything(tmp_path))]
    written = {"sources", "tasks/templates"}
    for stage in stages:
        for dep in stage["deps"]:
            folders = (path.as_posix() for path in (Path(dep), *Path(dep).parents))
            assert dep.endswith(".py") or any(folder in written for folder in folders), dep
        written |= set(stage["outs"])
    assert [*STAGES][:4] == ["fetch", "prepare", "model-base", "validate"]
    assert [*STAGES][-1] == "report"


def test_models_that_learn_from_one_another_have_one_stage(tmp_path):
    stages = {stage.name: stage for stage in stages_of(everything(tmp_path))}
    assert not {"model-left", "model-right"} & stages.keys()
    stage = stages["model-left-right"]
    deps = stage.entry()["deps"]
    assert {"data/model/start", "data/model/base"} <= set(deps)
    assert not {"data/model/left", "data/model/right"} & set(deps)
    assert {"models.left", "models.right", "signals.of_left", "signals.of_right"} <= {*stage.params}


def test_every_stage_writes_folders_of_its_own(tmp_path):
    for stage in stages_of(everything(tmp_path)):
        kind, _, name = stage.name.partition("-")
        folders = [f"data/{kind}/{each}" for each in name.split("-")] if name else [f"data/{kind}"]
        assert stage.outputs == folders
        # what measures other than models is a module of its own, on which no model's depends
        apart = {"evaluate-browser": "evaluate_export", "evaluate-deep": "evaluate_ensemble"}
        module = apart.get(stage.name, kind)
        assert stage.command.split() == ["python", "-m", f"tasks.{module}", *name.split()]


def test_every_stage_module_has_a_stage(tmp_path):
    modules = {
        path.stem
        for path in (REPOSITORY / "tasks").glob("*.py")
        if "run_stage(main" in path.read_text() and path.stem != "stage"
    }
    commands = [stage.command.split() for stage in stages_of(everything(tmp_path))]
    assert modules == {command[2].removeprefix("tasks.") for command in commands}


def test_an_export_reads_its_model_and_is_measured_only_if_that_is_asked(tmp_path):
    stages = {stage.name: stage for stage in stages_of(everything(tmp_path))}
    for name, kind in (("browser", "onnx"), ("llama", "gguf"), ("vllm", "safetensors")):
        export = stages[f"export-{name}"]
        assert {"data/model/first", "data/evaluate/first"} <= set(export.inputs)
        assert f"firstkd/exports/{kind}.py" in code(export)
    assert "data/export/browser" in stages["evaluate-browser"].inputs
    assert "evaluate-llama" not in stages
    assert "exports" in stages["validate"].params and "exports" not in STAGES["validate"].params


def test_an_export_of_a_model_without_a_temperature_is_refused(tmp_path):
    yaml = YAML()
    params = yaml.load(REPOSITORY / "params.yaml")
    export = {"kind": "gguf", "of": "start", "weights": "f16", "license": "Apache-2.0"}
    params["exports"] = {"llama": export}
    yaml.dump(params, tmp_path / "params.yaml")
    with pytest.raises(ConfigError) as refused:
        load_settings(tmp_path / "params.yaml")
    problem = "exports.llama.of: 'start' is not evaluated, so it has no temperature"
    assert problem in str(refused.value) and "\n" not in str(refused.value)


def imported_by(modules: list[str]) -> set[str]:
    """Files of the project that a fresh Python has loaded after importing these modules."""
    script = f"""
import importlib, json, sys
for module in {modules!r}:
    importlib.import_module(module)
print(json.dumps([m.__file__ for n, m in sys.modules.items()
                  if n.partition(".")[0] in ("firstkd", "tasks") and m.__file__]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    files = {Path(f).relative_to(REPOSITORY).as_posix() for f in json.loads(done.stdout)}
    return {file for file in files if not file.endswith("__init__.py")}


@pytest.fixture(scope="module")
def of_every_stage() -> set[str]:
    """What even a stage that does nothing loads: the settings, and what runs it."""
    return imported_by(["firstkd.settings", "tasks.stage"])


@pytest.mark.parametrize("name", ["prepare", "calibrate-choices", "model-first", "signal-choices"])
def test_a_stage_depends_on_all_the_code_that_it_loads(name, of_every_stage):
    declared = code(STAGES[name])
    # with what its functions import when they are called
    modules = [file.removesuffix(".py").replace("/", ".") for file in declared]
    loaded = imported_by([STAGES[name].command.split()[2], *modules])
    assert not loaded - declared - of_every_stage
    assert declared <= loaded


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_module_of_a_kind_is_a_dependency_of_exactly_the_stages_that_use_it(tmp_path, kind):
    settings, module = everything(tmp_path), file_of(kind)
    if kind is signals.Choices:
        kind = OfChoices  # which the other signals of choices take from its module
    using = {
        f"model-{'-'.join(settings.lineage.peers(name))}"
        for name, model in settings.models.items()
        if isinstance(model.init, kind)
        or any(
            isinstance(term, kind) or isinstance(settings.signals.get(term.signal), kind)
            for term in (model.learn or {}).values()
        )
    }
    for name, signal in settings.signals.items():
        if isinstance(signal, kind) and not signal.is_live:
            using |= {f"signal-{name}"}
            using |= {f"calibrate-{name}"} if signal.is_recalibrated else set()
        inits_of = [settings.models[of].init for of in signal.models]
        if any(isinstance(init, kind) and init.is_served for init in inits_of):
            using.add(f"signal-{name}")  # which asks its model, where others load theirs
    assert using
    assert using == {stage.name for stage in stages_of(settings) if module in code(stage)}


def test_only_models_that_learn_depend_on_training():
    depending = {name for name, stage in STAGES.items() if "firstkd/train/loop.py" in code(stage)}
    assert depending == {"model-teacher", "model-sft", "model-first"}
    assert depending == {n for n, stage in STAGES.items() if "tasks/training.py" in code(stage)}


def test_params_of_stages_exist(tmp_path):
    settings = everything(tmp_path)
    params = YAML(typ="safe").load(tmp_path / "params.yaml")
    for stage in stages_of(settings):
        assert stage.params
        for param in stage.params:
            section = params
            for key in param.split("."):
                section = section[key]


def test_no_stage_depends_on_the_machine():
    used = {param.split(".")[0] for stage in STAGES.values() for param in stage.params}
    assert "machine" not in used and "capture" in used


def test_a_model_that_learns_depends_on_its_own_section_of_train():
    assert "train.finetune" in STAGES["model-teacher"].params
    assert "train.distill" in STAGES["model-first"].params
    assert not [p for p in STAGES["model-start"].params if p.startswith("train")]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with params.yaml and the graph that follows from it."""
    (tmp_path / "params.yaml").write_bytes((REPOSITORY / "params.yaml").read_bytes())
    assert write_graph(tmp_path, SETTINGS)
    return tmp_path


def test_a_graph_is_written_once(project):
    before = (project / "dvc.yaml").stat().st_mtime_ns
    assert not write_graph(project, SETTINGS)
    assert (project / "dvc.yaml").stat().st_mtime_ns == before
    assert (project / "dvc.yaml").read_text().startswith("# Written by `firstkd graph`")
    check_graph(project, SETTINGS)


def test_a_run_writes_the_graph_again_unless_it_is_somebodys_own(project):
    file = project / "dvc.yaml"
    for before in (None, render(SETTINGS).replace("tasks.report", "tasks.reports")):
        file.unlink()
        if before:
            file.write_text(before)
        refresh_graph(project, SETTINGS)
        assert file.read_text() == render(SETTINGS)
    file.write_text("stages: {}\n")
    refresh_graph(project, SETTINGS)
    assert file.read_text() == "stages: {}\n"


def test_a_graph_that_was_edited_is_out_of_date_or_is_missing_is_refused(project):
    def refused(settings: Settings) -> None:
        with pytest.raises(ConfigError, match=r"dvc\.yaml does not match .* run `firstkd graph`"):
            check_graph(project, settings)

    text = (project / "dvc.yaml").read_text()
    (project / "dvc.yaml").write_text(text.replace("      - data/prepare\n", "", 1))
    refused(SETTINGS)
    (project / "dvc.yaml").write_text(text)
    fewer = SETTINGS.evaluate.model_copy(update={"models": ["first"]})
    refused(SETTINGS.model_copy(update={"evaluate": fewer}))
    (project / "dvc.yaml").unlink()
    refused(SETTINGS)


def firstkd(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [FIRSTKD, *arguments],
        cwd=project,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )


def test_the_command_writes_the_graph_and_checks_it_within_two_seconds(project):
    assert firstkd(project, "graph", "--check").returncode == 0
    edited = (project / "dvc.yaml").read_text().replace("tasks.report", "tasks.reports")
    (project / "dvc.yaml").write_text(edited)
    found = firstkd(project, "graph", "--check")
    assert found.returncode == 1
    (line,) = found.stderr.splitlines()
    assert line.startswith("error: dvc.yaml does not match params.yaml and the code")
    assert (project / "dvc.yaml").read_text() == edited
    before = seconds_of_children()
    assert firstkd(project, "graph").stdout == "wrote dvc.yaml\n"
    assert seconds_of_children() - before < 2
    assert (project / "dvc.yaml").read_text() == render(SETTINGS)
    assert firstkd(project, "graph").stdout == "dvc.yaml is up to date\n"


def test_a_stage_refuses_a_graph_that_is_out_of_date(project):
    (project / "dvc.yaml").write_text("stages: {}\n")
    done = subprocess.run(
        [sys.executable, "-m", "tasks.fetch"],
        cwd=project,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("fetch: dvc.yaml does not match params.yaml")
    assert not (project / "data").exists()


def seconds_of_children() -> float:
    """Processor time: what else runs on the machine does not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def comparisons(file: Path) -> set[str]:
    """What in a file asks for a kind: `….kind == …`, or `isinstance(…, KIND)`."""
    names = {kind.__name__ for kind in KINDS}
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare):
            asked = [ast.unparse(side) for side in (node.left, *node.comparators)]
            if any(side.endswith(".kind") or side.endswith("['kind']") for side in asked):
                found.add(ast.unparse(node))
        is_call = isinstance(node, ast.Call) and ast.unparse(node.func) in {"isinstance", "type"}
        if is_call and names & {ast.unparse(n) for n in ast.walk(node) if isinstance(n, ast.Name)}:
            found.add(ast.unparse(node))
        if isinstance(node, ast.Match) and ast.unparse(node.subject).endswith(".kind"):
            found.add(ast.unparse(node.subject))
    return found


def test_nothing_outside_the_modules_of_kinds_asks_for_a_kind():
    """A new kind is a module and a line in its table."""
    own = {file_of(kind) for kind in KINDS}
    own |= {f"firstkd/{of}/kinds.py" for of in ("models/init", "signals", "terms")}
    asking = {
        f"{path}: {comparison}"
        for package in ("firstkd", "tasks", "flows")
        for file in sorted((REPOSITORY / package).rglob("*.py"))
        if (path := file.relative_to(REPOSITORY).as_posix()) not in own
        if path != "tasks/knowledge.py"  # whose format is of tokens, and of nothing else
        for comparison in comparisons(file)
    }
    assert not asking
