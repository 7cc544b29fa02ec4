"""dvc.yaml, the modules in tasks/, and the settings say the same thing."""

import ast
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from firstkd.settings import Settings, load_settings
from tests.tiny import REPOSITORY

STAGES = YAML(typ="safe").load(REPOSITORY / "dvc.yaml")["stages"]
# what these change shows in the settings they check or the errors they raise, not in results
NOT_RESULTS = {"firstkd/errors.py", "firstkd/files.py", "firstkd/section.py", "tasks/stage.py"}


def definition(stage: str) -> dict:
    return STAGES[stage].get("do", STAGES[stage])


def imported_modules(path: Path) -> set[str]:
    """The project's modules that a module imports, anywhere in it, as paths."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    files = {f"{name.replace('.', '/')}.py" for name in names}
    files = {file for file in files if not file.endswith("settings.py")}
    return {file for file in files if (REPOSITORY / file).exists()} - NOT_RESULTS


def code_of(stage: str) -> set[str]:
    """All modules that a stage's module imports, directly or through others."""
    found, waiting = set(), {f"tasks/{stage}.py"}
    while waiting:
        file = waiting.pop()
        found.add(file)
        waiting |= imported_modules(REPOSITORY / file) - found
    return found


def test_every_stage_is_a_module_of_its_name():
    modules = {
        path.stem
        for path in (REPOSITORY / "tasks").glob("*.py")
        if "run_stage(main" in path.read_text() and path.stem != "stage"
    }
    assert modules == set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_all_the_code_it_runs(stage):
    declared = {dep for dep in definition(stage)["deps"] if dep.endswith(".py")}
    assert declared == code_of(stage)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_writes_only_its_own_folder(stage):
    assert definition(stage)["outs"] in ([f"data/{stage}"], [f"data/{stage}/${{key}}"])


@pytest.mark.parametrize("stage", STAGES)
def test_params_of_a_stage_are_settings(stage):
    sections = {field.alias or name for name, field in Settings.model_fields.items()}
    assert {param.split(".")[0] for param in definition(stage)["params"]} <= sections


def test_no_stage_depends_on_the_machine():
    used = {param.split(".")[0] for stage in STAGES for param in definition(stage)["params"]}
    assert "machine" not in used


def test_the_shipped_settings_are_valid():
    settings = load_settings(REPOSITORY / "params.yaml")
    assert settings.record.arm in settings.arms
