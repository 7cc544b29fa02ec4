"""Imports point downwards only: flows → tasks → firstkd. What each layer may not know."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
ORCHESTRATION = {"prefect", "mlflow", "dvc"}
FORBIDDEN = {
    "firstkd": {"flows", "tasks", "great_expectations", *ORCHESTRATION},
    "tasks": {"flows", *ORCHESTRATION},
    "flows": {"torch", "transformers", "deepspeed"},
}


def imported(file: Path) -> set[str]:
    """Return the top-level packages that a module imports, wherever in its code."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide the layer"
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names}


def lines(folder: str) -> dict[str, int]:
    """Return how many lines each module has."""
    files = sorted((REPOSITORY / folder).rglob("*.py"))
    return {str(file.relative_to(REPOSITORY)): len(file.read_text().splitlines()) for file in files}


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_modules_are_short(layer: str) -> None:
    assert not {name: length for name, length in lines(layer).items() if length > 250}


def test_orchestration_stays_small() -> None:
    assert sum(lines("flows").values()) <= 2900


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_layer_imports_only_downwards(layer: str) -> None:
    files = sorted((REPOSITORY / layer).rglob("*.py"))
    assert files
    wrong = {
        f"{file.relative_to(REPOSITORY)} imports {', '.join(sorted(found))}"
        for file in files
        if (found := imported(file) & FORBIDDEN[layer])
    }
    assert not wrong
