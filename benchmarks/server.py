"""What a teacher behind a server costs, against the same model in this process.

Measured on the fetched base model and the training questions, with choices as text:

- `server_vs_inprocess`: throughput of asking the server, in tokens of prompts and choices per
  second, over that of capture here. The small server of the tests computes each text alone, with
  all its logits, on the same cores; `--url` and `--model` ask another one, which must serve the
  base model to be comparable.
- `client_mb`: memory of the client beyond that of the questions, for QUESTIONS and for four times
  as many, in small shards: it does not grow with them.

Prints one JSON line; needs the stages fetch, prepare and model-base.

Run as  python -m benchmarks.server [--url URL --model NAME] [--questions 16]
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import torch

from benchmarks.capture import ROOT
from benchmarks.models import CAPTURE, memory_mb
from firstkd.data.examples import Example, read_examples
from firstkd.data.packing import packed_length
from firstkd.data.prompts import Question, encode
from firstkd.data.view import Viewer
from firstkd.models.folders import load_model, load_tokenizer, tokenizer_ids
from firstkd.models.init.server import ServerInit
from firstkd.openai.gifts import what_it_gives
from firstkd.openai.teacher import ServedModel
from firstkd.settings import load_settings
from firstkd.signals.asked import AskedTeacher
from firstkd.signals.capture import AskedCapture, Capture
from firstkd.signals.choices import Choices
from firstkd.train.distributed import Ranks
from tests.openai_server import NAME

SIGNAL = Choices(kind="choices", of="base")
PROMPT = load_settings(ROOT / "params.yaml").prompt
SHARD = 32
BASE = ROOT / "data/model/base"


@contextmanager
def small_server() -> Iterator[str]:
    """Run the server of the tests with the base model, in a separate process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.openai_server", str(BASE), str(port)]
    threads = str(load_settings(ROOT / "params.yaml").runtime.threads)
    server = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": threads})
    url = f"http://127.0.0.1:{port}/v1"
    try:
        while server.poll() is None:
            try:
                httpx.get(f"{url}/models", trust_env=False)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield url
    finally:
        server.kill()
        server.wait()


def real_questions(count: int) -> tuple[list[Example], list[Question]]:
    """Return the first training questions, repeated if there are too few."""
    found = read_examples(ROOT / "data/prepare/train.parquet")
    examples = [found[i % len(found)] for i in range(count)]
    return examples, encode(examples, load_tokenizer(BASE), PROMPT)


def ask(url: str, model: str, examples: Sequence[Example], questions: Sequence[Question]) -> float:
    """Return the seconds that asking takes."""
    init = ServerInit(
        kind="server", url=url, model=model, fingerprint="measured", tokenizer="base", ask="texts"
    )
    tokenizer, size = load_tokenizer(BASE), tokenizer_ids(BASE)
    assert size is not None
    settings = CAPTURE.model_copy(update={"shard_examples": SHARD})
    run = AskedCapture(SIGNAL, size, settings, Ranks())
    with ServedModel(init, tokenizer) as served, tempfile.TemporaryDirectory() as folder:
        teacher = AskedTeacher(served, what_it_gives(served), size, Viewer(PROMPT))
        started = time.perf_counter()
        run.write(teacher, examples, questions, Path(folder), lambda: None)
        return time.perf_counter() - started


def capture(questions: Sequence[Question]) -> float:
    torch.set_num_threads(load_settings(ROOT / "params.yaml").runtime.threads)
    model = load_model(BASE, "fp32")
    run = Capture(SIGNAL, model.config.vocab_size, CAPTURE, Ranks())
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        run.write(model, questions, range(len(questions)), Path(folder))
        return time.perf_counter() - started


def client_mb(url: str, model: str, count: int) -> float:
    """Return the MB that the client takes beyond the questions, in a separate process."""
    arguments = ["--url", url, "--model", model, "--questions", str(count), "--client"]
    command = [sys.executable, "-m", "benchmarks.server", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return round(float(done.stdout.splitlines()[-1]), 1)


def measured(url: str, model: str, count: int) -> dict[str, object]:
    examples, questions = real_questions(count)
    tokens = sum(packed_length(question) for question in questions)
    there, here = ask(url, model, examples, questions), capture(questions)
    return {
        "server_vs_inprocess": round(here / there, 3),
        "server_tokens_per_second": round(tokens / there, 1),
        "inprocess_tokens_per_second": round(tokens / here, 1),
        "client_mb": {n: client_mb(url, model, n) for n in (count, 4 * count)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.server")
    parser.add_argument("--url")
    parser.add_argument("--model", default=NAME)
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--client", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.client:
        examples, questions = real_questions(given.questions)
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forget the peak so far
        before = memory_mb("VmRSS")
        ask(given.url, given.model, examples, questions)
        print(memory_mb("VmHWM") - before)
    elif given.url:
        print(json.dumps(measured(given.url, given.model, given.questions)))
    else:
        with small_server() as url:
            print(json.dumps(measured(url, given.model, given.questions)))


if __name__ == "__main__":
    main()
