"""Running out of memory ends in one line that says what to lower."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from firstkd.errors import OutOfMemoryError
from firstkd.memory import memory_explained

# more than the address space of a process has
TOO_MANY = 1 << 47
LOAD = """
import resource
import sys
from pathlib import Path

from firstkd.models.placement import Spread, Whole
from firstkd.train.distributed import Ranks

model, tiny = map(Path, sys.argv[1:])
whole, spread = Whole(kind="whole"), Spread(kind="spread")
with whole.running(tiny, "fp32", Ranks()):
    pass  # all modules are loaded now
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
taken = int(status["VmData"].split()[0]) * 1024
# 20 MB do not hold the file, 60 MB not the weights
for placement, spare in (whole, 20), (whole, 60), (spread, 20), (whole, 400):
    most = taken + spare * 1_000_000
    resource.setrlimit(resource.RLIMIT_DATA, (most, resource.RLIM_INFINITY))
    try:
        with placement.running(model, "fp32", Ranks()):
            print(f"{placement.kind} {spare}: loaded")
    except Exception as error:
        print(f"{placement.kind} {spare}: {type(error).__name__}: {error}")
"""


@pytest.mark.parametrize(
    "allocate", [lambda: torch.empty(TOO_MANY), lambda: np.empty(TOO_MANY)], ids=["torch", "numpy"]
)
def test_a_refused_allocation_is_explained(allocate):
    with pytest.raises(OutOfMemoryError) as error, memory_explained("here", "lower this"):
        allocate()
    assert str(error.value) == "memory ran out here; lower this"


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="size") as error, memory_explained("here"):
        torch.ones(2) @ torch.ones(3)
    assert not isinstance(error.value, OutOfMemoryError)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 40 MB in its file, 80 MB in float32."""
    folder = tmp_path_factory.mktemp("large")
    config = LlamaConfig(
        vocab_size=32_768,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=1,
        num_attention_heads=8,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    return folder


def test_a_model_that_does_not_fit_is_named(large, tiny_model):
    command = [sys.executable, "-c", LOAD, str(large), str(tiny_model)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    error = f"OutOfMemoryError: memory ran out while loading {large}; "
    spread = "set machine.placement to { kind: spread }, or to { kind: sharded }"
    lower = "lower machine.placement.device_gb or host_gb, so that more of it stays on disk"
    assert done.stdout.splitlines() == [
        f"whole 20: {error}{spread}",
        f"whole 60: {error}{spread}",
        f"spread 20: {error}{lower}",
        "whole 400: loaded",
    ]
