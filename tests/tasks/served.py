"""Projects whose teacher is behind another program's server, beside the same weights here."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from ruamel.yaml import YAML

from firstkd.data.examples import read_examples
from firstkd.data.prompts import encode
from firstkd.data.settings import ChatSettings, PromptSettings
from firstkd.data.sources import fetch_source
from firstkd.errors import UnreachableError
from firstkd.models.folders import load_model, load_tokenizer
from firstkd.models.gguf import convert_gguf
from firstkd.models.init.source import SourceInit
from firstkd.models.scoring import score_questions
from firstkd.settings import load_settings
from firstkd.signals.store import SignalStore
from tasks import prepare
from tasks.graph import write_graph
from tests.tiny import REPOSITORY, write_tiny_params, write_tiny_questions

VLLM = REPOSITORY / ".venv-vllm/bin/python"
VLLM_ON_CPU = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # gigabytes
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "2",
}


def write_default_model(folder: Path) -> None:
    """Write the default model as published, model.gguf, and as the pipeline makes a folder of it.

    Skips the test where it cannot be fetched.
    """
    init = load_settings(REPOSITORY / "params.yaml").models["base"].init
    assert isinstance(init, SourceInit)
    try:
        fetch_source(init.source, init.sha256, folder / "model.gguf", REPOSITORY)
    except UnreachableError as error:
        pytest.skip(str(error))
    convert_gguf(folder / "model.gguf", folder)


@contextmanager
def serving(
    command: Sequence[str], port: int, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the end of the body, which is entered when it answers."""
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        until(lambda: healthy(port), process)
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
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

    `questions` is how many each split has at most. Where texts are asked for, tokens are a signal.
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
    tokens = {"tokens": params["signals"]["tokens"]} if init["ask"] == "texts" else {}
    params["models"] = {
        "base": params["models"]["base"],
        "teacher": {"init": init},
        "first": {
            "init": {"kind": "copy", "of": "base"},
            "train": "distill",
            "learn": {"choices": {"kind": "choice_kl", "from": "choices"}},
        },
    }
    params["signals"] = {"choices": {"kind": "choices", "of": "teacher"}, **tokens}
    del params["train"]["finetune"]
    params["evaluate"]["models"], params["record"]["student"] = ["first"], "first"
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
