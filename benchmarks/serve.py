"""`firstkd serve` under load: nothing lost, and what serving costs over bare scoring.

The student of a finished run behind the real server, in a process of its own; 50 clients ask the
test questions, one a request, until 10,000 are answered. Meanwhile the champion changes twice, and
the server is stopped and started once.

- `throughput_vs_bare`: questions a second over those of the same student scoring the same questions
  in batches of the server's size, without a server. Measured in the same run before the load, by
  the same clients on a fifth of the questions.
- `p50_ms`, `p99_ms` of the requests that were answered, from there.
- `answered`, `refused` (told to come again, or not let in while the server was down) and `lost`
  (neither) of the whole load; clients ask again what was refused.

Run as  python -m benchmarks.serve [QUESTIONS [CLIENTS]]   (after `firstkd run`; one JSON line)
"""

import asyncio
import json
import multiprocessing
import socket
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from firstkd.answering import Answerer
from firstkd.data.examples import read_examples
from firstkd.reproducibility import deterministic
from firstkd.serving.app import create_app
from firstkd.serving.batching import Served
from firstkd.serving.run import run
from firstkd.settings import load_settings

ROOT = Path(".")


def load(name: str) -> Served:
    settings = load_settings(ROOT / "params.yaml")
    student = settings.record.student
    deterministic(settings.runtime.seed, settings.runtime.threads)
    calibration = ROOT / "data/evaluate" / student / "calibration.json"
    return Served(name, Answerer.load(ROOT / "data/model" / student, calibration))


def serve(port: int, champion: Path) -> None:
    def newest(known: str | None) -> Served | None:
        name = champion.read_text()
        return None if name == known else load(name)

    settings = load_settings(ROOT / "params.yaml").serve
    run(create_app(settings, newest), "127.0.0.1", port, settings.limits)


def start(port: int, champion: Path) -> multiprocessing.Process:
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(port, champion))
    process.start()
    deadline = time.monotonic() + 300
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False, timeout=10)
            return process
        except httpx.TransportError:
            assert process.is_alive() and time.monotonic() < deadline
            time.sleep(0.2)


def questions(count: int) -> list[dict[str, Any]]:
    examples = [e for e in read_examples(ROOT / "data/prepare/test.parquet") if e.choices]
    asked = [{"question": e.prompt, "choices": list(e.choices or ())} for e in examples]
    return [asked[number % len(asked)] for number in range(count)]


class Load:
    """Clients that ask until every question is answered."""

    def __init__(self, port: int, asked: list[dict[str, Any]]) -> None:
        self.url, self.waiting = f"http://127.0.0.1:{port}/answer", list(asked)
        self.asked, self.answered, self.lost = len(asked), 0, 0
        self.refused: Counter[str] = Counter()
        self.versions: Counter[str] = Counter()
        self.seconds: list[float] = []

    async def run(self, clients: int) -> float:
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(self._client())
        return time.monotonic() - began

    async def _client(self) -> None:
        async with httpx.AsyncClient(trust_env=False, timeout=120) as client:
            while self.waiting:
                question, began = self.waiting.pop(), time.monotonic()
                while not await self._once(client, question):
                    await asyncio.sleep(0.2)
                self.seconds.append(time.monotonic() - began)

    async def _once(self, client: httpx.AsyncClient, question: dict[str, Any]) -> bool:
        try:
            reply = await client.post(self.url, json={"questions": [question]})
        except httpx.ConnectError:
            self.refused["no connection"] += 1
            return False
        except httpx.TransportError as error:  # it was let in, and got no answer
            self.lost += 1
            self.refused[type(error).__name__] += 1
            return False
        if reply.status_code != 200:
            self.refused[str(reply.status_code)] += 1
            return False
        self.answered += 1
        self.versions[reply.json()["answers"][0]["by"]] += 1
        return True


def bare(asked: list[dict[str, Any]]) -> float:
    """Questions a second without a server."""
    served, size = load("bare"), load_settings(ROOT / "params.yaml").serve.limits.questions
    columns = [each["question"] for each in asked], [each["choices"] for each in asked]
    examples = served.answerer.examples(*columns)
    served.answerer.answer_examples(examples[:size])  # the first batch warms up
    began = time.monotonic()
    for first in range(0, len(examples), size):
        served.answerer.answer_examples(examples[first : first + size])
    return len(examples) / (time.monotonic() - began)


async def disturb(load: Load, port: int, champion: Path, process: Any) -> Any:
    """Change the champion at a quarter and three quarters, and restart the server in between."""
    for share, name in ((0.25, "student v2"), (0.5, ""), (0.75, "student v3")):
        while load.answered < share * load.asked:
            await asyncio.sleep(0.05)
        if name:
            champion.write_text(name)
            continue
        process.terminate()
        await asyncio.to_thread(process.join)
        process = await asyncio.to_thread(start, port, champion)
    return process


def main(count: int = 10_000, clients: int = 50) -> None:
    asked = questions(count)
    with tempfile.TemporaryDirectory() as scratch, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port, champion = free.getsockname()[1], Path(scratch, "champion")
        free.close()
        champion.write_text("student v1")
        process = start(port, champion)
        try:
            asyncio.run(Load(port, asked[:clients]).run(clients))  # warms up
            calm, whole = Load(port, asked[: count // 5]), Load(port, asked)
            rate = calm.asked / asyncio.run(calm.run(clients))

            async def disturbed() -> Any:
                running = asyncio.create_task(disturb(whole, port, champion, process))
                return await whole.run(clients), await running

            seconds, process = asyncio.run(disturbed())
        finally:
            process.terminate()
            process.join()
    alone = bare(asked[: count // 5])
    percentiles = statistics.quantiles(calm.seconds, n=100)
    found = {
        "benchmark": "serve",
        "questions": count,
        "clients": clients,
        "throughput_vs_bare": round(rate / alone, 3),
        "questions_per_second": round(rate, 1),
        "p50_ms": round(1000 * percentiles[49]),
        "p99_ms": round(1000 * percentiles[98]),
        "answered": whole.answered,
        "refused": dict(whole.refused),
        "lost": whole.lost,
        "versions": dict(whole.versions),
        "seconds": round(seconds, 1),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
