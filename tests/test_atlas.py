"""The atlas: its cells are whole settings, and it goes on cell by cell."""

import json
import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from benchmarks import atlas, project
from benchmarks.atlas_cells import CELLS, PLAIN, with_cells
from benchmarks.atlas_tables import save_differences, table
from firstkd.measure.bootstrap import Estimate
from firstkd.settings import load_settings
from firstkd.terms import kinds
from tasks.graph import stages_of
from tasks.scores import plain
from tests.tiny import REPOSITORY, write_tiny_model, write_tiny_params, write_tiny_questions


def load(path: Path) -> Any:
    return YAML().load(path)


def test_every_cell_is_a_model_that_differs_from_the_plain_one(tmp_path):
    params = with_cells(load(REPOSITORY / "params.yaml"))
    YAML().dump(params, tmp_path / "params.yaml")
    settings = load_settings(tmp_path / "params.yaml")
    stages = {stage.name for stage in stages_of(settings)}
    assert {f"evaluate-{cell}" for cell in CELLS} <= stages
    given = {**settings.models, **settings.evaluate.ensembles}
    made = [given[cell].model_dump_json() for cell in CELLS]
    assert len(set(made)) == len(CELLS)
    assert len({cell.what for cell in CELLS.values()}) == len(CELLS)


def test_every_kind_of_term_has_a_cell(tmp_path):
    YAML().dump(with_cells(load(REPOSITORY / "params.yaml")), tmp_path / "params.yaml")
    models = load_settings(tmp_path / "params.yaml").models
    used = {type(term) for model in models.values() for term in (model.learn or {}).values()}
    # its teacher has the student's tokenizer
    assert {kind.__name__ for kind in set(kinds.KINDS) - used} == {"Alm", "Uld"}


def test_a_cell_made_of_others_costs_what_they_cost(tmp_path):
    YAML().dump(with_cells(load(REPOSITORY / "params.yaml")), tmp_path / "params.yaml")
    settings = load_settings(tmp_path / "params.yaml")
    parts = {cell: atlas.trained(settings, cell) for cell in ("average", "deep", "gold", "dropped")}
    assert parts == {
        "average": ["gold", "gold_alone"],
        "deep": [PLAIN, "again"],
        "gold": ["gold"],
        "dropped": [PLAIN],
    }


def test_cells_of_another_number_of_seeds_are_not_mixed_in(tmp_path, monkeypatch, capsys):
    (tmp_path / "results.json").write_text(json.dumps({PLAIN: numbers(0.5, 1.0)}))
    monkeypatch.setattr(sys, "argv", ["atlas", "--seeds", "2", "--work", str(tmp_path)])
    with pytest.raises(SystemExit):
        atlas.main()
    assert "results.json has cells of another number of seeds: plain" in capsys.readouterr().err


def numbers(value: float, seconds: float | None) -> dict[str, Any]:
    metrics = {
        name: Estimate(value, value - 0.1, value + 0.1)
        for name in ("accuracy", "nll", "ece", "aurc")
    }
    read = {how: plain(metrics) for how in ("raw", "calibrated")}
    less = {f"{how}_less_plain": found for how, found in read.items()}
    cost = {"seconds": seconds, "bytes": 2_500_000}
    return {"seeds": 3, "cost": cost, **read, **less}


def test_the_table_has_every_cell_and_its_differences():
    far = {**numbers(0.5, 1.0), **{f"{how}_less_plain": {
        name: {"value": 0.2, "low": 0.1, "high": 0.3} for name in ("accuracy", "nll", "ece", "aurc")
    } for how in ("raw", "calibrated")}}  # fmt: skip
    text = table({PLAIN: numbers(0.5, 61.4), "gold": numbers(0.05, None), "hard": far})
    differences, values = text.split("\n\n")
    assert "| `plain` | 0.500 (0.400 to 0.600) |" in values and "| 61 | 2500 |" in values
    assert "| `gold` | 0.050" in values and "| – | 2500 |" in values
    assert "| `gold` | + right choice | +0.050 (−0.050 to +0.150) |" in differences
    assert "| **+0.200 (+0.100 to +0.300)** |" in differences
    assert "| `plain` |" not in differences and "| *the teacher's choices* |" in differences
    assert "states and relations" not in differences


def test_the_published_page_has_the_published_numbers():
    docs = REPOSITORY / "docs"
    found = json.loads((docs / "atlas.json").read_text(encoding="utf-8"))
    page = (docs / "atlas.md").read_text(encoding="utf-8")
    assert found.keys() <= CELLS.keys() and {cell["seeds"] for cell in found.values()} == {3}
    assert page.endswith(table(found))


def test_the_figure_has_the_same_bytes_again(tmp_path):
    found = {PLAIN: numbers(0.5, 61.4), "gold": numbers(0.05, None), "hard": numbers(-0.3, 1.0)}
    for name in ("a.png", "b.png"):
        save_differences(tmp_path / name, found)
    drawn = (tmp_path / "a.png").read_bytes()
    assert drawn.startswith(b"\x89PNG") and drawn == (tmp_path / "b.png").read_bytes()
    save_differences(tmp_path / "c.png", {**found, "gold": numbers(0.04, None)})
    assert (tmp_path / "c.png").read_bytes() != drawn


def last_line(out: str) -> Any:
    """The result, after what libraries write when they are first imported."""
    return json.loads(out.splitlines()[-1])


@pytest.mark.slow
def test_cells_are_trained_once_and_the_atlas_goes_on(tmp_path, monkeypatch, capsys):
    """In one process, with a stage run where its output is missing in place of `dvc repro`."""
    given = tmp_path / "given"
    given.mkdir()
    write_tiny_model(given / "sources/model")
    write_tiny_questions(given / "sources/questions.jsonl", 80, seed=1)
    write_tiny_questions(given / "sources/elsewhere.jsonl", 20, seed=2)
    write_tiny_params(given)
    ran = []

    def dvc(root: Path, *arguments: str) -> None:
        if arguments[0] != "repro":
            return
        settings = load_settings(root / "params.yaml")
        stages = {stage.name: stage for stage in stages_of(settings)}
        of_output = {output: name for name, stage in stages.items() for output in stage.outputs}

        def repro(name: str) -> None:
            stage = stages[name]
            if all((root / output).exists() for output in stage.outputs):
                return
            for read in stage.inputs:
                folders = (path.as_posix() for path in (Path(read), *Path(read).parents))
                for made in {of_output[folder] for folder in folders if folder in of_output}:
                    repro(made)
            ran.append(name)
            _, _, module, *values = stage.command.split()
            import_module(module).main(root, *values)

        repro(arguments[1])

    monkeypatch.setattr(project, "dvc", dvc)
    words = ["atlas", "--seeds", "1", "--work", str(tmp_path / "atlas")]
    words += ["--params", str(given / "params.yaml"), "--cells"]
    monkeypatch.setattr(sys, "argv", [*words, "smoothed"])
    atlas.main()
    first = last_line(capsys.readouterr().out)
    assert first.keys() == {PLAIN, "smoothed"} and "model-plain" in ran
    assert first["smoothed"]["cost"]["seconds"] > 0 and first[PLAIN]["cost"]["bytes"] > 0
    before = [*ran]
    monkeypatch.setattr(sys, "argv", [*words, "two_stages"])
    atlas.main()
    assert ran[len(before) :] == ["model-two_stages", "evaluate-two_stages"]
    found = last_line(capsys.readouterr().out)
    assert {name: found[name] for name in first} == first
    assert "two_stages" in (tmp_path / "atlas/atlas.md").read_text()
    shutil.rmtree(tmp_path / "atlas")
