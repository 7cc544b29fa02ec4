"""The examples are whole, valid settings, and differ from the shipped ones only where they say."""

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from firstkd.data.examples import read_examples
from firstkd.settings import load_settings
from tasks import fetch, prepare
from tests.tiny import REPOSITORY

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.yaml"))


def load(path: Path) -> Any:
    return YAML(typ="safe").load(path)


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_the_shipped_settings_with_other_data(path: Path) -> None:
    load_settings(path)
    shipped, example = load(REPOSITORY / "params.yaml"), load(path)
    for settings in (shipped, example):
        del settings["fetch"]["datasets"], settings["prepare"]["max_examples"]
    assert example == shipped


def write_questions(path: Path, count: int) -> None:
    """In the layout of OpenBookQA's authors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lines:
        for number in range(count):
            choices = [{"text": f"at {place}", "label": place} for place in "ABCD"]
            question = {"stem": f"{path.stem}: where is {number}", "choices": choices}
            record = {"id": f"{path.stem}-{number}", "question": question, "answerKey": "C"}
            lines.write(json.dumps(record) + "\n")


def test_openbookqa_is_read_and_split_as_its_head_says(tmp_path: Path) -> None:
    """On files of the same layout, not of its content: without the checksums of the real ones."""
    yaml = YAML()
    params = yaml.load(REPOSITORY / "examples/openbookqa.yaml")
    datasets = params["fetch"]["datasets"]
    del datasets["commonsenseqa"]  # which would have to be downloaded
    for dataset in datasets.values():
        del dataset["sha256"]
        write_questions(tmp_path / dataset["source"].removeprefix("path:"), 80)
    yaml.dump(params, tmp_path / "params.yaml")
    settings = load_settings(tmp_path / "params.yaml")
    for name, dataset in settings.fetch.datasets.items():
        fetch.fetch_dataset(name, dataset, tmp_path / "data/fetch/raw", tmp_path)
    prepare.main(tmp_path)
    sizes = {}
    for split in prepare.SPLITS:
        examples = read_examples(tmp_path / f"data/prepare/{split}.parquet")
        sizes[split] = len(examples)
        assert {example.source for example in examples} == {
            "openbookqa_test" if split == "test" else "openbookqa"
        }
    assert sizes["test"] == 80 and sizes["train"] + sizes["calibration"] == 80
