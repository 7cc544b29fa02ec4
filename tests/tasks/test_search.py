"""The search for a student's shape on the tiny model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from firstkd.errors import ConfigError
from firstkd.settings import load_settings
from tasks import model, search
from tests.tasks.test_model import CHOICES, write_data
from tests.tiny import write_tiny_model, write_tiny_params

SEARCH = {"of": "teacher", "like": "first", "train": "distill", "min_layers": 1, "trials": 4}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    write_tiny_params(tmp_path)
    write_tiny_model(tmp_path / "data/model/teacher", layers=3)
    write_data(tmp_path, CHOICES)
    set_search(tmp_path, max_parameters=40_000)
    return tmp_path


def set_search(root: Path, **changes: object) -> None:
    yaml = YAML()
    params = yaml.load(root / "params.yaml")
    params["models"]["first"]["learn"] = {"gold_choice": {}}
    params["search"] = {**SEARCH, **changes}
    yaml.dump(params, root / "params.yaml")


def results(root: Path) -> list[dict[str, float]]:
    found: list[dict[str, float]] = json.loads((root / "data/search/candidates.json").read_text())
    return found


def test_candidates_keep_to_the_budget_and_are_ranked(project, monkeypatch):
    search.main(project)
    ranked = results(project)
    assert len({each["layers"] for each in ranked}) == len(ranked) >= 2
    assert [each["nll"] for each in ranked] == sorted(each["nll"] for each in ranked)
    assert all(0 < each["parameters"] <= 40_000 and each["temperature"] > 0 for each in ranked)
    assert not list((project / "data/.search").glob("*/*/data"))
    # what has been tried is not tried again, and more trials go on from fewer
    monkeypatch.setattr(model, "main", None)
    search.main(project)
    assert results(project) == ranked


def test_interrupted_it_goes_on_to_the_same_result(project, tmp_path_factory, monkeypatch):
    other = tmp_path_factory.mktemp("other") / "project"
    shutil.copytree(project, other)
    search.main(project)
    made, names = model.main, []

    def interrupted(root: Path, name: str) -> None:
        names.append(name)
        if len(names) == 5:
            raise KeyboardInterrupt
        made(root, name)

    monkeypatch.setattr(model, "main", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search.main(other)
    search.main(other)
    assert results(other) == results(project)


def test_a_trial_that_was_interrupted_changes_none_of_those_after_it(
    tmp_path, tmp_path_factory, monkeypatch
):
    """Of 20 trials; candidates are scored by their shape, since only the order is looked at."""
    write_tiny_params(tmp_path)
    write_tiny_model(tmp_path / "data/model/teacher", layers=24)
    write_data(tmp_path, CHOICES)
    set_search(tmp_path, max_parameters=400_000, trials=20)
    tried: list[int] = []

    def scored(*given: Any) -> dict[str, Any]:
        *_, layers, width = given
        if len(tried) == stop_after:
            raise KeyboardInterrupt
        tried.append(layers)
        nll = abs(layers - 17) + layers / 100
        return {"layers": layers, "intermediate_size": width, "nll": nll}

    monkeypatch.setattr(search, "candidate", scored)
    expected = None
    for stop in (None, 3, 6, 9):
        root = tmp_path_factory.mktemp("searched") / "project"
        shutil.copytree(tmp_path, root)
        tried, stop_after = [], stop
        if stop is not None:
            with pytest.raises(KeyboardInterrupt):
                search.main(root)
            stop_after = None
        search.main(root)
        expected = expected or tried
        assert tried == expected and len(tried) > 9


def test_other_questions_or_another_teacher_start_a_search_anew(project):
    settings = load_settings(project / "params.yaml")
    before = search.identity(project, settings, settings.search)
    write_tiny_model(project / "data/model/teacher", layers=4)
    assert search.identity(project, settings, settings.search) != before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"of": "techer"}, r"search.of: 'techer'; allowed: average, base, first,"),
        ({"like": "start"}, r"search.like: 'start'; allowed: first, sft, teacher"),
        ({"train": "heal"}, r"search.train: 'heal'; allowed: distill, finetune"),
    ],
)
def test_what_cannot_be_searched_is_one_line(project, changes, message):
    set_search(project, **{"max_parameters": 1000, **changes})
    with pytest.raises(ConfigError, match=message):
        load_settings(project / "params.yaml")


def test_a_budget_that_nothing_fits_is_one_line(project):
    set_search(project, max_parameters=1000)
    with pytest.raises(ConfigError, match=r"params.yaml: search: max_parameters: 1,000, but 1 lay"):
        search.main(project)
