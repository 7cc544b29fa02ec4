"""A teacher behind vLLM's own server, on the CPU: `make test-vllm`, which installs it."""

import subprocess
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from firstkd.data.examples import read_examples
from firstkd.data.prompts import encode
from firstkd.data.settings import PromptSettings
from firstkd.errors import UnreachableError
from firstkd.files import read_json, sha256_of
from firstkd.models.folders import load_model, load_tokenizer
from firstkd.signals.store import SignalStore
from tasks import model
from tasks import signal as stage
from tests.firstkd.signals.stores import CHOICES, TOKENS, capture_into
from tests.tasks.served import (
    VLLM,
    VLLM_ON_CPU,
    free_port,
    serving,
    there_and_here,
    until,
    write_default_model,
    write_project,
)
from tests.tasks.test_signal import ENVIRONMENT, command

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not VLLM.exists(), reason="vLLM is installed by make test-vllm"),
]
CLOZE = PromptSettings(format="cloze", max_length=256)
QUESTIONS = {"train": 12, "calibration": 4}


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("default")
    write_default_model(folder)
    return folder


def vllm(teacher: Path, port: int) -> AbstractContextManager[subprocess.Popen[bytes]]:
    arguments = {
        "model": teacher,
        "served-model-name": "large",
        "host": "127.0.0.1",
        "port": port,
        "dtype": "float32",
        "max-model-len": 512,
        "max-logprobs": 50,
        "max-num-seqs": 4,
    }
    options = [f"--{name}={value}" for name, value in arguments.items()]
    command = [str(VLLM), "-m", "vllm.entrypoints.openai.api_server", *options, "--enforce-eager"]
    return serving(command, port, VLLM_ON_CPU)


def captured_here(root: Path, teacher: Path, kind: object) -> dict[str, torch.Tensor]:
    """The signal's columns of the training questions, by the same model in this process."""
    examples = read_examples(root / "data/prepare/train.parquet")
    questions = encode(examples, load_tokenizer(teacher), CLOZE)
    store = capture_into(root / "here" / kind.kind, kind, load_model(teacher, "fp32"), questions)
    return store.whole().columns


def test_texts_are_scored_as_here_though_it_is_killed(default: Path, tmp_path: Path) -> None:
    port = free_port()
    write_project(tmp_path, default, port, QUESTIONS, ask="texts", timeout_seconds=300)
    with vllm(default, port) as server:
        model.main(tmp_path, "teacher")
        gives = read_json(tmp_path / "data/model/teacher/server.json")["gives"]
        assert gives == {"texts": "prompt_logprobs"}
        asking = subprocess.Popen(
            command("choices"), cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE
        )
        until(lambda: [*tmp_path.glob("data/.signal/*/*/*.safetensors")], asking)
        server.kill()
        _, said = asking.communicate()
    assert asking.returncode == UnreachableError.exit_code and b"did not answer" in said
    kept = {file.name: sha256_of(file) for file in tmp_path.glob("data/.signal/*/train/*.saf*")}
    assert kept
    with vllm(default, port):
        stage.main(tmp_path, "choices")
        stage.main(tmp_path, "tokens")
    for name, written in kept.items():
        assert sha256_of(tmp_path / "data/signal/choices/train" / name) == written
    found = SignalStore(tmp_path / "data/signal/choices/train").whole().columns["logprob"]
    expected = captured_here(tmp_path, default, CHOICES)["logprob"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    tokens = SignalStore(tmp_path / "data/signal/tokens/train").whole().columns
    for name, expected in captured_here(tmp_path, default, TOKENS).items():
        # stored in float16
        ends = 2e-3 * expected.double().abs().clamp_min(1)
        difference = (tokens[name].double() - expected.double()).abs()
        assert (difference <= ends).float().mean() > 0.99, name


def test_letters_are_those_of_the_same_weights_here(default: Path, tmp_path: Path) -> None:
    port = free_port()
    write_project(tmp_path, default, port, QUESTIONS, ask="letters", timeout_seconds=300)
    with vllm(default, port):
        model.main(tmp_path, "teacher")
        stage.main(tmp_path, "choices")
    found, expected = there_and_here(tmp_path, default, "train")
    assert len(found) == 12 and (expected.exp().max(-1).values.std()) > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
