"""A model spread over memory and disk, or shared out over processes, is the same model."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from firstkd.data.packing import pack
from firstkd.models.folders import load_model, load_tokenizer, number_of_parameters
from firstkd.models.placement import Sharded, Spread
from firstkd.models.scoring import ResponseScorer
from firstkd.models.self_test import check_model
from firstkd.train.distributed import Ranks
from tests.firstkd.models.placed import QUESTIONS, run
from tests.tiny import REPOSITORY

ALL_ON_DISK, HALF_ON_DISK = 1e-5, 6e-5  # of 10⁻⁴ gigabytes
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.parametrize("host_gb", [ALL_ON_DISK, HALF_ON_DISK, None])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_spread_model_computes_what_a_whole_one_does(tiny_model, host_gb, precision):
    whole = load_model(tiny_model, precision)
    spread = Spread(kind="spread", host_gb=host_gb)
    with spread.running(tiny_model, precision, Ranks()) as model:
        assert ("disk" in getattr(model, "hf_device_map", {}).values()) == (host_gb is not None)
        assert number_of_parameters(model) == number_of_parameters(whole)
        scores, texts = run(model, 1)
        states = states_of(model)
        if precision == "fp32":
            check_model(model, load_tokenizer(tiny_model), QUESTIONS)
    assert torch.equal(scores, run(whole, 1)[0]) and texts == run(whole, 1)[1]
    assert all(map(torch.equal, states, states_of(whole)))


def states_of(model) -> list[torch.Tensor]:
    with torch.inference_mode():
        found = ResponseScorer(model).states(pack(QUESTIONS, range(4)), [0, 1, 2])
    return [found.hidden_NH, *found.at_places.values()]


def test_one_process_alone_spreads_what_is_to_be_sharded(tiny_model):
    with Sharded(kind="sharded").running(tiny_model, "fp32", Ranks()) as model:
        assert torch.equal(run(model, 1)[0], run(load_model(tiny_model, "fp32"), 1)[0])


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 24 layers, 476 MB in float32 and half of that in its file.

    So its weights are nowhere in memory but where they are placed.
    """
    folder = tmp_path_factory.mktemp("large")
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=640,
        intermediate_size=1728,
        num_hidden_layers=24,
        num_attention_heads=10,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    return folder


Results = tuple[torch.Tensor, list[int]]
BYTES = {"fp32": 4, "bf16": 2}
MOST = {"fp32": 0.6, "bf16": 0.75}
"""Share of the weights that one of two processes holds: half, and some 50 MB to exchange them."""


@pytest.fixture(scope="module")
def expected(large: Path) -> dict[str, Results]:
    return {precision: run(load_model(large, precision), 1) for precision in BYTES}


def peaks(
    start: Sequence[str], model: Path, tiny: Path, out: Path, precision: str, **placement: object
) -> list[float]:
    """Run the model in other processes; return what each held at most, as a share of the model."""
    arguments = [*map(str, (model, tiny, out)), precision, json.dumps(placement)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "MALLOC_MMAP_THRESHOLD_": "65536",  # or glibc keeps what is freed
        "TORCH_FR_BUFFER_SIZE": "0",  # or torch keeps what it notes of the last 2,000 messages
    }
    command = [sys.executable, *start, "-m", "tests.firstkd.models.placed", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    size = BYTES[precision] / 2 * (model / "model.safetensors").stat().st_size
    return [int(file.read_text()) / size for file in out.glob("peak-*")]


def check_results(out: Path, rank: int, expected: Results) -> None:
    found = load_file(out / f"{rank}.safetensors")
    assert torch.equal(found["scores"], expected[0]) and found["text"].tolist() == expected[1]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("precision", BYTES)
def test_two_processes_hold_half_each(large, tiny_model, tmp_path, expected, precision):
    found = peaks(TORCHRUN, large, tiny_model, tmp_path, precision, kind="sharded")
    assert len(found) == 2 and max(found) <= MOST[precision]
    for rank in (0, 1):
        check_results(tmp_path, rank, expected[precision])


@pytest.mark.slow
def test_a_spread_model_takes_no_more_memory_than_it_may(large, tiny_model, tmp_path, expected):
    start = [[], large, tiny_model, tmp_path, "fp32"]
    assert min(peaks(*start, kind="whole")) > 1
    limit = 0.4 * 2e-9 * (large / "model.safetensors").stat().st_size
    assert max(peaks(*start, kind="spread", host_gb=limit)) <= 0.6
    check_results(tmp_path, 0, expected["fp32"])
