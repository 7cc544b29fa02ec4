import shutil

import pytest
import torch
from ruamel.yaml import YAML

from firstkd.files import read_json
from firstkd.models.folders import load_model, load_tokenizer
from tasks import prepare, prune
from tests.firstkd.models.families import tiny_model
from tests.tiny import write_tiny_model, write_tiny_params, write_tiny_questions


@pytest.fixture
def project(tmp_path):
    write_tiny_params(tmp_path)
    yaml = YAML()
    params = yaml.load(tmp_path / "params.yaml")
    params["prune"]["layers"] = 2
    yaml.dump(params, tmp_path / "params.yaml")
    for name, seed in (("questions", 1), ("elsewhere", 2)):
        write_tiny_questions(tmp_path / f"data/fetch/raw/{name}.jsonl", 80, seed)
    prepare.main(tmp_path)
    write_tiny_model(tmp_path / "data/fetch/base", layers=4)
    return tmp_path


def replace_base(project, family):
    """The base model becomes a tiny one of this family, with the tokenizer it had."""
    base = project / "data/fetch/base"
    tokenizer = load_tokenizer(base)
    shutil.rmtree(base)
    tiny_model(family).save_pretrained(base)
    tokenizer.save_pretrained(base)


def test_the_student_is_the_base_model_without_the_layers_that_matter_least(project):
    prune.main(project)
    found = read_json(project / "data/prune/metrics.json")
    base, student = (
        load_model(project / "data" / name, "bf16") for name in ("fetch/base", "prune")
    )
    assert len(student.base_model.layers) == len(found["kept"]) == 2
    for layer, old in zip(student.base_model.layers, found["kept"], strict=True):
        expected = base.base_model.layers[old].mlp.up_proj.weight
        assert torch.equal(layer.mlp.up_proj.weight, expected)


@pytest.mark.parametrize("family", ["smollm3", "qwen3_moe", "gpt2"])
def test_families_with_lists_or_names_of_their_own_are_pruned(project, family):
    replace_base(project, family)
    prune.main(project)
    assert read_json(project / "data/prune/config.json")["model_type"] == family
