"""Training on GPUs, as a stage: it repeats to the byte, and under ZeRO it learns the same."""

from pathlib import Path

import pytest
import torch

from firstkd.files import read_json_lines
from tests.tasks.trainings import Project, copy_of, write_inputs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    write_inputs(root)
    return root


def trained(inputs: Path, root: Path, **settings: object) -> tuple[str, list[float]]:
    """Return the hash of a trained model and its losses."""
    project: Project = copy_of(inputs, root)
    project.change(**settings)
    made = project.run()
    curve = read_json_lines(root / "data/model/teacher/training.jsonl")
    return made, [point["loss"] for point in curve]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_repeats_to_the_byte(inputs, tmp_path, precision):
    once = trained(inputs, tmp_path / "once", precision=precision)
    assert trained(inputs, tmp_path / "again", precision=precision) == once


@pytest.fixture(scope="module")
def losses_alone(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return trained(inputs, tmp_path_factory.mktemp("alone"))[1]


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("processes", [1, 2])
def test_every_zero_stage_learns_the_same(inputs, tmp_path, losses_alone, zero_stage, processes):
    if torch.cuda.device_count() < processes:
        pytest.skip("NCCL refuses two processes on one GPU")
    _, losses = trained(inputs, tmp_path / "it", zero_stage=zero_stage, processes=processes)
    assert losses == pytest.approx(losses_alone, rel=1e-3)
