"""The stage of a student that learns on what it writes itself."""

import shutil
from pathlib import Path

from ruamel.yaml import YAML

from firstkd.data.examples import Example, write_examples
from firstkd.files import read_json_lines, sha256_of
from firstkd.settings import load_settings
from tasks import model
from tasks.graph import stages_of
from tests.tiny import open_questions, write_tiny_params

CODE = "firstkd/open_text/on_policy.py"


def project(root: Path, tiny_model: Path, talker: Path) -> None:
    root.mkdir(exist_ok=True)
    write_tiny_params(root)
    yaml = YAML()
    params = yaml.load(root / "params.yaml")
    params["signals"] = {
        "tokens": {
            "kind": "tokens",
            "of": "teacher",
            "select": {"kind": "top_k", "k": 8},
            "live": True,
        }
    }
    params["models"]["first"] |= {
        "on_policy": {"share": 0.5, "max_new_tokens": 8},
        "learn": {
            "tokens": {
                "kind": "sparse_kl",
                "from": "tokens",
                "recalibrate": "none",
                "divergence": {"kind": "jsd", "beta": 0.5},
            },
            "right": {"kind": "gold_choice"},
        },
    }
    yaml.dump(params, root / "params.yaml")
    shutil.copytree(talker, root / "data/model/teacher")
    shutil.copytree(tiny_model, root / "data/model/start")
    unanswered = Example("q/u", "Where does the old fox live?", "", None, None, "q", "train")
    chosen = Example("q/c", "Where is it?", "here", ("here", "there"), 0, "q", "train")
    examples = [*open_questions(30, seed=1), unanswered, chosen]
    write_examples(root / "data/prepare/train.parquet", examples)


def test_a_student_learns_on_its_own_text_and_repeats(tmp_path, tiny_model, talker):
    hashes = []
    for run in ("one", "two"):
        root = tmp_path / run
        project(root, tiny_model, talker)
        model.main(root, "first")
        curve = read_json_lines(root / "data/model/first/training.jsonl")
        assert len(curve) == 4 and all(point["tokens"] > 0 for point in curve)
        hashes.append(sha256_of(root / "data/model/first"))
    assert hashes[0] == hashes[1]


def test_only_its_stage_depends_on_how_text_is_written(tmp_path, tiny_model, talker):
    project(tmp_path, tiny_model, talker)
    stages = {stage.name: stage for stage in stages_of(load_settings(tmp_path / "params.yaml"))}
    assert CODE in stages["model-first"].code and CODE not in stages["model-sft"].code
