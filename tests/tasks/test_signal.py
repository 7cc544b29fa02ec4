"""The stage as real processes: killed and resumed, and on two ranks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from firstkd.files import read_json, sha256_of
from tasks import prepare
from tests.tiny import write_tiny_model, write_tiny_params, write_tiny_questions

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
STAGE = [sys.executable, "-m", "tasks.extract"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    write_tiny_params(root)
    yaml = YAML()
    params = yaml.load(root / "params.yaml")
    params["extract"].update({"shard_examples": 2, "micro_batch_size": 2})
    yaml.dump(params, root / "params.yaml")
    write_tiny_model(root / "data/finetune")
    for name, seed in (("questions", 1), ("elsewhere", 2)):
        write_tiny_questions(root / f"data/fetch/raw/{name}.jsonl", 80, seed)
    prepare.main(root)
    return root


@pytest.fixture(scope="module")
def undisturbed(inputs: Path) -> str:
    """The hash of what a run that nothing interrupts makes."""
    subprocess.run(STAGE, cwd=inputs, env=ENVIRONMENT, check=True)
    return sha256_of(inputs / "data/extract")


@pytest.fixture
def project(inputs: Path, tmp_path: Path) -> Path:
    """The same inputs in another place."""
    (tmp_path / "data").mkdir()
    for name in ("params.yaml", "data/finetune", "data/prepare"):
        (tmp_path / name).symlink_to(inputs / name)
    return tmp_path


@pytest.mark.parametrize("shards", [1, 25])
def test_killed_and_run_again_gives_the_same_bytes(project, undisturbed, shards):
    process = subprocess.Popen(STAGE, cwd=project, env=ENVIRONMENT)
    while len(list(project.glob("data/.extract/**/*.safetensors"))) < shards:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (project / "data/extract").exists()
    # a block's choices are written last: where they are, the block is whole
    whole = project.glob("data/.extract/*/*/choice/*.safetensors")
    kept = {path: path.stat().st_mtime_ns for path in whole}
    partial = next(project.glob("data/.extract/*"))
    (partial / "train/token/.tmpAbC123").write_bytes(b"what safetensors had not finished")
    subprocess.run(STAGE, cwd=project, env=ENVIRONMENT, check=True)
    assert sha256_of(project / "data/extract") == undisturbed
    assert not (project / "data/.extract").exists()
    for path, written in kept.items():  # what was captured is not captured again
        assert (project / "data/extract" / path.relative_to(partial)).stat().st_mtime_ns == written


def test_two_processes_make_the_store_that_one_makes(project, undisturbed):
    yaml = YAML()
    params = yaml.load(project / "params.yaml")
    params["machine"]["processes"] = 2
    (project / "params.yaml").unlink()  # a link
    yaml.dump(params, project / "params.yaml")
    subprocess.run(STAGE, cwd=project, env=ENVIRONMENT, check=True)
    assert sha256_of(project / "data/extract") == undisturbed


def test_shards_of_other_settings_are_dropped(project, undisturbed):
    stale = project / "data/.extract/0123456789abcdef/train/token"
    stale.mkdir(parents=True)
    (stale / "00000.safetensors").write_bytes(b"of another teacher")
    subprocess.run(STAGE, cwd=project, env=ENVIRONMENT, check=True)
    assert sha256_of(project / "data/extract") == undisturbed


def test_the_concentration_is_of_what_is_stored(inputs, undisturbed):
    metrics = read_json(inputs / "data/extract/metrics.json")["train"]
    masses = list(metrics["cumulative_mass"].values())
    assert masses == sorted(masses)
    assert 0 < masses[0] < masses[-1] <= 1
    assert metrics["dense_bytes"] == metrics["tokens"] * 400 * 2
    stored = (inputs / "data/extract/train/token").glob("*.safetensors")
    assert metrics["bytes"] == sum(file.stat().st_size for file in stored)
