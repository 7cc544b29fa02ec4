"""A champion measured again: as it is served, and from nothing but its files."""

import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from firstkd.data.examples import Example, write_examples
from firstkd.files import read_json
from tasks.evaluate import main as evaluate
from tasks.remeasure import main
from tests.tiny import HOMES, REPOSITORY, write_tiny_params


def choice(split: str, number: int) -> Example:
    choices = tuple(HOMES.values())[: 3 + number % 2]
    return Example(f"{split}/{number}", f"Where {number}?", choices[0], choices, 0, "made", split)


@pytest.fixture
def root(tmp_path: Path, tiny_model: Path) -> Path:
    """A project in which one model was evaluated on two test sets."""
    write_tiny_params(tmp_path)
    shutil.copytree(tiny_model, tmp_path / "data/model/teacher")
    for split in ("calibration", "test", "ood_elsewhere"):
        examples = [choice(split, number) for number in range(8)]
        write_examples(tmp_path / f"data/prepare/{split}.parquet", examples)
    evaluate(tmp_path, "teacher")
    return tmp_path


def test_on_the_same_questions_it_measures_the_same(root: Path, tmp_path: Path) -> None:
    evaluated, output = root / "data/evaluate/teacher", tmp_path / "measured"
    main(root, str(root / "data/model/teacher"), str(evaluated / "calibration.json"), str(output))
    first, again = (pq.read_table(f / "predictions.parquet") for f in (evaluated, output))
    assert again.equals(first)
    sets = read_json(evaluated / "metrics.json")["sets"]
    assert read_json(output / "metrics.json")["sets"] == sets
    assert sets.keys() == {"test", "elsewhere"}


def test_pickled_weights_are_refused_in_one_line(root: Path, tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    shutil.copytree(
        root / "data/model/teacher", planted, ignore=shutil.ignore_patterns("*.safetensors")
    )
    proof = tmp_path / "it ran"
    (planted / "pytorch_model.bin").write_bytes(f"cos\nsystem\n(S'touch \"{proof}\"'\ntR.".encode())
    calibration = root / "data/evaluate/teacher/calibration.json"
    done = subprocess.run(
        [sys.executable, "-m", "tasks.remeasure", planted, calibration, tmp_path / "measured"],
        cwd=root,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.lstrip().startswith(f"remeasure: {planted} holds no *.safetensors weights")
    assert not proof.exists() and not (tmp_path / "measured").exists()
