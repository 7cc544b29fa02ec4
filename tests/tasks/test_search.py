"""The search for a student's shape on the tiny model."""

import json
import shutil
from pathlib import Path

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
