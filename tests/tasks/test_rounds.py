"""The stage of a student that adapts to the calibration questions while it trains."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from firstkd.data.examples import Example, write_examples
from firstkd.errors import ConfigError
from firstkd.files import read_json_lines, sha256_of
from firstkd.settings import load_settings
from tasks import model
from tasks.graph import stages_of
from tasks.preflight import check_adapting
from tests.tiny import HOMES, write_tiny_params

CODE = {
    f"firstkd/terms/{name}.py" for name in ("adaptive_focal", "bandit_settings", "exp3", "gammas")
} | {"firstkd/train/rounds.py", "tasks/rounds.py"}


def project(root: Path, tiny_model: Path) -> Path:
    """A project whose `sft` adapts; what it starts from is there."""
    root.mkdir()
    write_tiny_params(root)
    yaml = YAML()
    params = yaml.load(root / "params.yaml")
    params["models"]["sft"] |= {
        "learn": {
            "right": {"kind": "adaptive_focal", "rounds": 3, "bins": 4},
            "choices": {"kind": "gold_choice"},
            "gold": {},
        },
        "bandit": {"arms": ["choices", "gold"], "rounds": 4},
    }
    params["train"]["distill"] |= {"micro_batch_size": 2, "epochs": 2}
    yaml.dump(params, root / "params.yaml")
    (root / "data/model").mkdir(parents=True)
    (root / "data/model/start").symlink_to(tiny_model)
    write_split(root, "train", 8)
    write_split(root, "calibration", 9)
    return root


def write_split(root: Path, split: str, count: int) -> None:
    homes = tuple(HOMES.values())[:4]
    examples = [
        Example(f"{split}/{n}", f"Tell {n} {split}", homes[n % 4], homes, n % 4, "made", split)
        for n in range(count)
    ]
    examples.append(Example(f"{split}/open", "Say it.", "in a den", None, None, "made", split))
    write_examples(root / f"data/prepare/{split}.parquet", examples)


def test_it_adapts_and_repeats_and_other_calibration_questions_change_it(tmp_path, tiny_model):
    hashes = []
    for run in ("one", "two", "other"):
        root = project(tmp_path / run, tiny_model)
        if run == "other":
            write_split(root, "calibration", 15)
        model.main(root, "sft")
        curve = read_json_lines(root / "data/model/sft/training.jsonl")
        assert all(0 < point["gold_probability"] < 1 for point in curve)
        assert len({point["right_gamma"] for point in curve}) > 1
        hashes.append(sha256_of(root / "data/model/sft"))
    assert hashes[0] == hashes[1] != hashes[2]


def test_only_its_stage_reads_the_calibration_questions(tmp_path, tiny_model):
    root = project(tmp_path / "project", tiny_model)
    stages = {stage.name: stage for stage in stages_of(load_settings(root / "params.yaml"))}
    file = "data/prepare/calibration.parquet"
    assert file in stages["model-sft"].inputs and file not in stages["model-first"].inputs
    settings = {"firstkd/terms/bandit_settings.py"}  # which are in params.yaml
    assert {*stages["model-sft"].code} & CODE == CODE - settings
    assert not {*stages["model-first"].code} & CODE


def test_calibration_questions_without_choices_are_refused(tmp_path, tiny_model):
    settings = load_settings(project(tmp_path / "project", tiny_model) / "params.yaml")
    check_adapting(settings, {"calibration"})
    with pytest.raises(ConfigError, match=r"models\.sft: its bandit, .* has no questions with ch"):
        check_adapting(settings, {"train", "test"})
