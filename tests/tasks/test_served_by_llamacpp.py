"""A teacher behind llama.cpp's own server, as a process that is killed in the middle."""

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from ruamel.yaml import YAML
from transformers import LlamaConfig, LlamaForCausalLM

from firstkd.data.examples import read_examples
from firstkd.data.prompts import encode
from firstkd.data.settings import ChatSettings, PromptSettings
from firstkd.data.sources import fetch_source
from firstkd.errors import ConfigError, UnreachableError
from firstkd.exports.base import Exported
from firstkd.exports.gguf import GgufExport
from firstkd.files import read_json
from firstkd.models.folders import load_model, load_tokenizer
from firstkd.models.gguf import convert_gguf
from firstkd.models.init.source import SourceInit
from firstkd.models.scoring import score_questions
from firstkd.settings import load_settings
from firstkd.signals.store import SignalStore
from tasks import model, prepare
from tasks import signal as stage
from tasks.graph import write_graph
from tests.tasks.test_signal import ENVIRONMENT
from tests.tiny import REPOSITORY, write_tiny_model, write_tiny_params, write_tiny_questions

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


@contextmanager
def llamacpp(teacher: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    file = str(teacher / "model.gguf")
    command = [sys.executable, "-m", "tests.llamacpp_server", file, str(port), "large"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    try:
        until(lambda: healthy(port), process)
        yield process
    finally:
        process.kill()
        process.wait()


def healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
    except httpx.TransportError:
        return False


def until(condition: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    while not condition():
        assert process.poll() is None, "it ended too early"
        time.sleep(0.005)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def write_project(
    root: Path, teacher: Path, port: int, questions: dict[str, int] | None = None, **changed: Any
) -> None:
    """A project whose teacher is behind the server, in shards of four questions.

    `questions` is how many each split has at most.
    """
    shutil.copytree(teacher, root / "data/model/base")
    write_tiny_params(root)
    yaml = YAML()
    params = yaml.load(root / "params.yaml")
    params["capture"]["shard_examples"] = 4
    params["prepare"]["max_examples"].update(questions or {})
    init = {
        "kind": "server",
        "url": f"http://127.0.0.1:{port}/v1",
        "model": "large",
        "fingerprint": "seed 3",
        "tokenizer": "base",
        "ask": "letters",
        "retries": 1,
        **changed,
    }
    params["models"] = {
        "base": params["models"]["base"],
        "teacher": {"init": init},
        "first": {
            "init": {"kind": "copy", "of": "base"},
            "train": "distill",
            "learn": {"choices": {"kind": "choice_kl", "from": "choices"}},
        },
    }
    params["signals"] = {"choices": {"kind": "choices", "of": "teacher"}}
    del params["train"]["finetune"]
    params["evaluate"]["models"] = ["first"]
    yaml.dump(params, root / "params.yaml")
    write_graph(root, load_settings(root / "params.yaml"))
    for name, seed in (("questions", 1), ("elsewhere", 2)):
        write_tiny_questions(root / f"data/fetch/{name}.jsonl", 80, seed)
    prepare.main(root)


def there_and_here(root: Path, teacher: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities [questions, 4] of choices, as the server and as this process has them."""
    chat = PromptSettings(format="chat", max_length=512, chat=ChatSettings(choices="letter"))
    examples = read_examples(root / f"data/prepare/{split}.parquet")
    questions = encode(examples, load_tokenizer(teacher), chat)
    here = score_questions(load_model(teacher, "fp32"), questions, 8).log_softmax(-1)
    found = SignalStore(root / f"data/signal/choices/{split}").whole()
    return found.columns["logprob"].view(-1, 4), here


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
    assert asking.returncode == UnreachableError.exit_code and b"does not answer" in said
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
    """The default model as published, model.gguf, and as the pipeline makes a folder of it."""
    folder = tmp_path_factory.mktemp("default")
    init = load_settings(REPOSITORY / "params.yaml").models["base"].init
    assert isinstance(init, SourceInit)
    try:
        fetch_source(init.source, init.sha256, folder / "model.gguf", REPOSITORY)
    except UnreachableError as error:
        pytest.skip(str(error))
    convert_gguf(folder / "model.gguf", folder)
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
        pytest.raises(ConfigError, match=r"gives no log-probabilities of prompts .* set it to let"),
    ):
        model.main(tmp_path, "teacher")
