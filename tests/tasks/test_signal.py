"""The stage as real processes: killed and resumed, and on two ranks; signals of others pooled."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from ruamel.yaml import YAML

from firstkd.data.examples import example_key, read_all, read_examples
from firstkd.errors import ConfigError
from firstkd.files import read_json, sha256_of, write_json
from firstkd.models.folders import load_model, load_tokenizer
from firstkd.settings import load_settings
from firstkd.signals.choices import Choices
from firstkd.signals.store import SignalStore
from tasks import prepare
from tasks import signal as stage
from tasks.graph import stages_of, write_graph
from tasks.layout import learned_from
from tasks.viewing import viewer_of
from tests.firstkd.signals.stores import CHOICES, capture_into
from tests.tiny import REPOSITORY, write_tiny_model, write_tiny_params, write_tiny_questions

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.slow


def run(root: Path, name: str) -> None:
    subprocess.run(command(name), cwd=root, env=ENVIRONMENT, check=True)


def command(name: str) -> list[str]:
    return [sys.executable, "-m", "tasks.signal", name]


def write_params(root: Path, processes: int = 1, **placement: Any) -> None:
    """The tiny settings, in small shards, with two signals of choices that are pooled."""
    write_tiny_params(root)
    yaml = YAML()
    params = yaml.load(root / "params.yaml")
    params["capture"].update({"shard_examples": 2, "micro_batch_size": 2})
    params["signals"]["others"] = {"kind": "choices", "of": "start"}
    params["signals"]["pooled"] = {"kind": "mean", "of": ["choices", "others"]}
    params["signals"]["weighted"] = {**params["signals"]["pooled"], "weights": "confidence"}
    params["machine"]["processes"] = processes
    params["machine"]["placement"] = placement or {"kind": "whole"}
    yaml.dump(params, root / "params.yaml")
    write_graph(root, load_settings(root / "params.yaml"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    write_params(root)
    write_tiny_model(root / "data/model/teacher")
    write_tiny_model(root / "data/model/start", layers=1)
    for name, seed in (("questions", 1), ("elsewhere", 2)):
        write_tiny_questions(root / f"data/fetch/{name}.jsonl", 80, seed)
    prepare.main(root)
    return root


@pytest.fixture(scope="module")
def undisturbed(inputs: Path) -> dict[str, str]:
    """The hashes of what runs that nothing interrupts make."""
    found = {}
    for name in ("tokens", "choices"):
        run(inputs, name)
        found[name] = sha256_of(inputs / "data/signal" / name)
    return found


@pytest.fixture
def project(inputs: Path, tmp_path: Path) -> Path:
    """The same inputs in another place."""
    (tmp_path / "data").mkdir()
    for name in ("data/model", "data/prepare"):
        (tmp_path / name).symlink_to(inputs / name)
    write_params(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("name", "shards"), [("tokens", 1), ("tokens", 25), ("choices", 12)])
def test_killed_and_run_again_gives_the_same_bytes(project, undisturbed, name, shards):
    process = subprocess.Popen(command(name), cwd=project, env=ENVIRONMENT)
    while len(list(project.glob("data/.signal/*/*/*.safetensors"))) < shards:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (project / "data/signal").exists()
    (partial,) = project.glob("data/.signal/*")
    kept = {path: path.stat().st_mtime_ns for path in partial.glob("*/*.safetensors")}
    (partial / "train/.tmpAbC123").write_bytes(b"what safetensors had not finished")
    run(project, name)
    assert sha256_of(project / "data/signal" / name) == undisturbed[name]
    assert not list((project / "data/.signal").glob("*"))
    for path, written in kept.items():  # what was captured is not captured again
        final = project / "data/signal" / name / path.relative_to(partial)
        assert final.stat().st_mtime_ns == written


def test_two_processes_make_the_store_that_one_makes(project, undisturbed):
    write_params(project, processes=2)
    run(project, "tokens")
    assert sha256_of(project / "data/signal/tokens") == undisturbed["tokens"]


def test_a_teacher_in_parts_gives_the_store_of_a_whole_one(project, undisturbed):
    write_params(project, processes=2, kind="sharded")
    run(project, "tokens")  # which the processes do not share equally: 27 shards
    assert sha256_of(project / "data/signal/tokens") == undisturbed["tokens"]
    write_params(project, processes=2, kind="spread", host_gb=1e-5)
    run(project, "choices")
    assert sha256_of(project / "data/signal/choices") == undisturbed["choices"]


def test_a_view_is_read_by_the_teacher_and_stored_for_the_same_examples(project, undisturbed):
    params = YAML().load(project / "params.yaml")
    params["signals"]["choices"]["view"] = {"instructions": "Choose well.", "shots": 2}
    YAML().dump(params, project / "params.yaml")
    stage.main(project, "choices")
    store = SignalStore(project / "data/signal/choices/train")
    settings = load_settings(project / "params.yaml")
    examples = read_all(learned_from(project, settings))
    folder = project / "data/model/teacher"
    viewer = viewer_of(project, settings, cast("Choices", settings.signals["choices"]))
    questions = viewer.encode(examples, load_tokenizer(folder))
    expected = capture_into(project / "here", CHOICES, load_model(folder, "fp32"), questions)
    found = store.whole()
    torch.testing.assert_close(found.columns, expected.whole().columns, rtol=0, atol=1e-5)
    assert torch.equal(found.counts, expected.whole().counts)
    keys, ids = [example_key(e) for e in examples], [e.id for e in examples]
    assert store.positions(keys, ids).tolist() == [*range(len(examples))]
    assert sha256_of(project / "data/signal/choices") != undisturbed["choices"]


def test_shards_of_other_settings_are_dropped_and_those_of_other_signals_kept(project, undisturbed):
    stale, other = (
        project / f"data/.signal/{name}-0123456789abcdef/train" for name in ("tokens", "choices")
    )
    for folder in (stale, other):
        folder.mkdir(parents=True)
        (folder / "00000.safetensors").write_bytes(b"of another teacher")
    run(project, "tokens")
    assert sha256_of(project / "data/signal/tokens") == undisturbed["tokens"]
    assert not stale.exists() and other.exists()


def test_a_store_names_its_examples_by_their_content(inputs, undisturbed):
    examples = read_examples(inputs / "data/prepare/train.parquet")
    for name in undisturbed:
        store = SignalStore(inputs / "data/signal" / name / "train")
        assert store.keys.tolist() == [example_key(example) for example in examples]
        keys, ids = [example_key(e) for e in examples], [e.id for e in examples]
        assert store.positions(keys, ids).tolist() == list(range(len(examples)))


def test_the_concentration_is_of_what_is_stored(inputs, undisturbed):
    metrics = read_json(inputs / "data/signal/tokens/metrics.json")["train"]
    masses = list(metrics["cumulative_mass"].values())
    assert masses == sorted(masses)
    assert 0 < masses[0] < masses[-1] <= 1
    assert metrics["dense_bytes"] == metrics["records"] * 400 * 2
    stored = (inputs / "data/signal/tokens/train").glob("*.safetensors")
    assert metrics["bytes"] == sum(file.stat().st_size for file in stored)


def test_pooled_signals_are_the_mean_of_their_members(inputs, undisturbed):
    run(inputs, "others")
    run(inputs, "pooled")
    members = [
        SignalStore(inputs / f"data/signal/{name}/train").whole().columns["logprob"].exp()
        for name in ("choices", "others")
    ]
    pooled = SignalStore(inputs / "data/signal/pooled/train")
    assert pooled.manifest["kind"] == "mean"
    found = pooled.whole().columns["logprob"].exp()
    torch.testing.assert_close(found, (members[0] + members[1]) / 2)
    assert not torch.allclose(members[0], members[1])


def test_signals_weighted_by_confidence_depend_on_their_members_temperatures(inputs, undisturbed):
    temperatures = {"choices": 0.5, "others": 4.0}
    for name, temperature in temperatures.items():
        if not (inputs / "data/signal" / name).exists():
            run(inputs, name)
        fitted = {"kind": "temperature", "temperature": temperature}
        write_json(inputs / f"data/calibrate/{name}/temperature.json", fitted)
    stage.main(inputs, "weighted")
    settings = load_settings(inputs / "params.yaml")
    stages = {each.name: each for each in stages_of(settings)}
    for name in temperatures:
        assert f"data/calibrate/{name}/temperature.json" in stages["signal-weighted"].inputs
        assert f"data/calibrate/{name}/temperature.json" not in stages["signal-pooled"].inputs
    sure, flat = (
        SignalStore(inputs / f"data/signal/{name}/train").whole().columns["logprob"]
        for name in temperatures
    )
    found = SignalStore(inputs / "data/signal/weighted/train").whole()
    (first, *_) = found.counts.tolist()
    sure, flat = (sure[:first] / 0.5).softmax(-1), (flat[:first] / 4).softmax(-1)
    weights = [torch.distributions.Categorical(each).entropy().neg().exp() for each in (sure, flat)]
    expected = (weights[0] * sure + weights[1] * flat) / sum(weights)
    torch.testing.assert_close(found.columns["logprob"][:first].exp(), expected)


def test_a_name_that_is_not_there_is_refused(project):
    with pytest.raises(ConfigError, match=r"there is no signals\.token; there are choices, tokens"):
        stage.main(project, "token")
