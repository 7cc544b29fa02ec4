"""A teacher behind llama.cpp's own server, as a process that is killed in the middle."""

import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from firstkd.errors import ConfigError, UnreachableError
from firstkd.exports.base import Exported
from firstkd.exports.gguf import GgufExport
from firstkd.files import read_json
from firstkd.models.folders import load_model, load_tokenizer
from tasks import model
from tasks import signal as stage
from tests.tasks.served import (
    free_port,
    serving,
    there_and_here,
    until,
    write_default_model,
    write_project,
)
from tests.tasks.test_signal import ENVIRONMENT
from tests.tiny import write_tiny_model

pytestmark = pytest.mark.integration
TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama that answers by one of the letters, as a folder and as model.gguf in it."""
    folder = tmp_path_factory.mktemp("teacher")
    write_tiny_model(folder)
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = LlamaForCausalLM(config)
    letters = tokenizer.convert_tokens_to_ids([*"ABCDE"])
    with torch.no_grad():
        # one dimension is the same at every token, and speaks for the letters
        network.model.embed_tokens.weight[:, 0] = 4.0
        for layer in network.model.layers:
            layer.self_attn.q_proj.weight.mul_(8)  # attention that looks closely at the question
            layer.self_attn.o_proj.weight.mul_(2)
            layer.self_attn.o_proj.weight[0] = layer.mlp.down_proj.weight[0] = 0.0
        network.lm_head.weight[:, 0] = 0.0
        network.lm_head.weight[letters, 0] = 6.0
    network.save_pretrained(folder)
    export = GgufExport(kind="gguf", of="teacher", weights="f16", license="MIT")
    loaded = load_model(folder, "fp32").eval()
    export.write(Exported(loaded, tokenizer, "{}"), folder / "model.gguf")
    return folder


def llamacpp(teacher: Path, port: int) -> AbstractContextManager[subprocess.Popen[bytes]]:
    file = str(teacher / "model.gguf")
    command = [sys.executable, "-m", "tests.llamacpp_server", file, str(port), "large"]
    return serving(command, port, ENVIRONMENT)


def test_letters_are_those_of_the_same_weights_here_though_it_is_killed(
    teacher: Path, tmp_path: Path
) -> None:
    port = free_port()
    write_project(tmp_path, teacher, port)
    command = [sys.executable, "-m", "tasks.signal", "choices"]
    with llamacpp(teacher, port) as server:
        model.main(tmp_path, "teacher")
        assert read_json(tmp_path / "data/model/teacher/server.json")["gives"] == {"letters": 20}
        asking = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE)
        until(lambda: [*tmp_path.glob("data/.signal/*/*/*.safetensors")], asking)
        server.kill()
        _, said = asking.communicate()
    assert asking.returncode == UnreachableError.exit_code and b"did not answer" in said
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.glob("data/.signal/*/*/*.saf*")}
    assert kept and not (tmp_path / "data/signal").exists()
    with llamacpp(teacher, port):
        stage.main(tmp_path, "choices")
    for file, written in kept.items():
        final = tmp_path / "data/signal/choices" / file.relative_to(file.parents[1])
        assert final.stat().st_mtime_ns == written
    for split in ("train", "calibration"):
        found, expected = there_and_here(tmp_path, teacher, split)
        assert expected.std(0).min() > 0.03  # the questions differ
        # llama.cpp keeps weights and the cache of attention in float16: 0.003 nats were seen
        torch.testing.assert_close(found, expected, rtol=0, atol=0.01)


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("default")
    write_default_model(folder)
    return folder


def test_the_default_model_says_what_it_says_here(default: Path, tmp_path: Path) -> None:
    port = free_port()
    write_project(tmp_path, default, port, {"train": 12, "calibration": 4})
    with llamacpp(default, port):
        model.main(tmp_path, "teacher")
        stage.main(tmp_path, "choices")
    found, expected = there_and_here(tmp_path, default, "train")
    assert len(found) == 12 and (expected.exp().max(-1).values.std()) > 0.01
    difference = (found - expected).abs()
    # the weights are the same, of four bits; llama.cpp also rounds what it multiplies them by to
    # eight: 0.06 nats were seen on average, 0.22 at most
    assert difference.mean() < 0.1 and difference.max() < 0.4


def test_texts_are_refused_in_one_line(teacher: Path, tmp_path: Path) -> None:
    port = free_port()
    write_project(tmp_path, teacher, port, ask="texts")
    with (
        llamacpp(teacher, port),
        pytest.raises(
            ConfigError, match=r"returns no log-probabilities for prompts .* set it to let"
        ),
    ):
        model.main(tmp_path, "teacher")
