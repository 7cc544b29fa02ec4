"""Models that are measured together."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from ruamel.yaml import YAML

from firstkd.data.examples import Example, read_examples, write_examples
from firstkd.errors import ConfigError
from firstkd.files import read_json
from firstkd.settings import load_settings
from tasks.evaluate_ensemble import main
from tasks.graph import stages_of
from tasks.layout import model_folder
from tasks.subject import Subject
from tests.tiny import HOMES, write_tiny_model, write_tiny_params

MEMBERS = ["teacher", "first"]


def question(split, number):
    choices = tuple(HOMES.values())[: 2 + number % 3]
    right = number % len(choices)
    return Example(
        f"{split}/{number}", f"Where {number}?", choices[right], choices, right, "made", split
    )


def with_ensemble(root, **changes):
    yaml = YAML()
    params = yaml.load(root / "params.yaml")
    params["evaluate"]["ensembles"] = {"deep": MEMBERS}
    params["evaluate"]["models"].append("deep")
    params["evaluate"].update(changes)
    yaml.dump(params, root / "params.yaml")
    return load_settings(root / "params.yaml")


def test_an_ensemble_is_the_mean_of_its_members_probabilities(tmp_path, tiny_model):
    write_tiny_params(tmp_path)
    settings = with_ensemble(tmp_path)
    shutil.copytree(tiny_model, tmp_path / "data/model/teacher")
    write_tiny_model(tmp_path / "data/model/first", layers=1, vocabulary=350)  # its own tokens
    (tmp_path / "data/prepare").mkdir()
    for split in ("calibration", "test"):
        examples = [question(split, number) for number in range(8)]
        write_examples(tmp_path / f"data/prepare/{split}.parquet", examples)
    main(tmp_path, "deep")
    tests = read_examples(tmp_path / "data/prepare/test.parquet")
    alone = [
        Subject.load(name, model_folder(tmp_path, name), settings.prompt, settings.evaluate)
        for name in MEMBERS
    ]
    expected = np.mean([each.score(tests, "").scores.softmax(-1).numpy() for each in alone], 0)
    rows = pq.read_table(tmp_path / "data/evaluate/deep/predictions.parquet").to_pylist()
    for row, probabilities in zip(rows, expected, strict=True):
        found = torch.tensor(row["scores"]).softmax(-1).numpy()
        np.testing.assert_allclose(found, probabilities, atol=1e-6)
    metrics = read_json(tmp_path / "data/evaluate/deep/metrics.json")
    assert metrics["parameters"] == sum(each.network.num_parameters() for each in alone)
    assert metrics["temperature"] > 0 and "vocabulary" not in metrics["sets"]["test"]


@pytest.mark.parametrize("kind", ["dropout", "laplace", "swag"])
def test_guesses_at_one_model_are_measured_as_a_line_of_the_table(tmp_path, tiny_model, kind):
    write_tiny_params(tmp_path)
    of = MEMBERS if kind == "swag" else "first"
    with_ensemble(tmp_path, ensembles={"deep": {"kind": kind, "of": of, "draws": 3}})
    for name in MEMBERS:
        shutil.copytree(tiny_model, tmp_path / f"data/model/{name}")
    (tmp_path / "data/prepare").mkdir()
    for split in ("train", "calibration", "test"):
        examples = [question(split, number) for number in range(8)]
        write_examples(tmp_path / f"data/prepare/{split}.parquet", examples)
    main(tmp_path, "deep")
    first = pq.read_table(tmp_path / "data/evaluate/deep/predictions.parquet")
    metrics = read_json(tmp_path / "data/evaluate/deep/metrics.json")
    assert metrics["temperature"] > 0 and len(first) == 8
    main(tmp_path, "deep")
    assert first == pq.read_table(tmp_path / "data/evaluate/deep/predictions.parquet")


def test_swag_of_unlike_models_is_one_line_with_its_key(tmp_path, tiny_model):
    write_tiny_params(tmp_path)
    with_ensemble(tmp_path, ensembles={"deep": {"kind": "swag", "of": MEMBERS}})
    shutil.copytree(tiny_model, tmp_path / "data/model/teacher")
    write_tiny_model(tmp_path / "data/model/first", layers=1)
    with pytest.raises(
        ConfigError, match=r"evaluate.ensembles.deep: of: first's weights do not match"
    ):
        main(tmp_path, "deep")


def test_an_ensemble_has_a_stage_that_reads_its_members(tmp_path):
    write_tiny_params(tmp_path)
    stages = {stage.name: stage for stage in stages_of(with_ensemble(tmp_path))}
    assert {f"data/model/{name}" for name in MEMBERS} <= set(stages["evaluate-deep"].inputs)
    assert "data/evaluate/deep" in stages["report"].inputs
    assert "tasks/evaluate_ensemble.py" not in stages["evaluate-first"].code


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ensembles": {"deep": ["first", "frist"]}}, "evaluate.ensembles.deep: frist is not a"),
        ({"ensembles": {"sft": MEMBERS}}, r"evaluate.ensembles.sft: 'sft' is the name of a model"),
        ({"models": ["sft", "first"]}, r"evaluate.ensembles.deep: add 'deep' to evaluate.models"),
        (
            {"ensembles": {"deep": ["first"]}},
            r"evaluate.ensembles.deep: \['first'\] is not allowed",
        ),
        (
            {"ensembles": {"deep": {"kind": "dropout", "of": "first", "rate": 1.0}}},
            r"evaluate.ensembles.deep.rate: 1.0 is not allowed",
        ),
        (
            {"ensembles": {"deep": {"kind": "laplace", "of": "frist"}}},
            r"evaluate.ensembles.deep: frist is not a model",
        ),
        ({"ensembles": {}}, r"evaluate.models.\d: 'deep' is not among models, exports or"),
    ],
)
def test_what_is_no_ensemble_is_named(tmp_path, changes, message):
    write_tiny_params(tmp_path)
    with pytest.raises(ConfigError, match=message):
        with_ensemble(tmp_path, **changes)
