"""`firstkd serve` under load: is anything lost, and what does serving cost over bare scoring?

The student of a finished run is served by the real server in a separate process; 50 clients ask the
test questions, one per request, until 10,000 are answered. Meanwhile the champion changes twice,
and the server is stopped and started once.

- `throughput_vs_bare`: questions per second over those of the same student scoring the same
  questions in batches of the server's size, without a server; each on a fifth of the questions, one
  after the other, before the load.
- `p50_ms`, `p99_ms`: times of the answered requests in that measurement.
- `answered`, `refused` (asked to retry, or not connected while the server was down) and `lost`
  (neither), over the whole load; clients repeat what was refused.

An interrupted run resumes: each measurement, and each tenth of the load, is kept in
logs/benchmarks/serve.json until the end.

Run as  python -m benchmarks.serve [--questions N] [--clients N]   (after `firstkd run`; one line)
"""

import argparse
import asyncio
import json
import multiprocessing
import socket
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from firstkd.answering import Answerer
from firstkd.data.examples import read_examples
from firstkd.files import read_json, write_json
from firstkd.reproducibility import deterministic
from firstkd.serving.app import create_app
from firstkd.serving.batching import Served
from firstkd.serving.run import run
from firstkd.settings import load_settings

ROOT = Path(".")
KEPT = ROOT / "logs/benchmarks/serve.json"
SPAWN = multiprocessing.get_context("spawn")
PARTS = 10
CHANGES = {2: "student v2", 7: "student v3"}
"""Parts of the load halfway through which a new champion takes over."""
RESTART = 5
"""The part halfway through which the server is stopped and started."""


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


def start(port: int, champion: Path) -> Any:
    process = SPAWN.Process(target=serve, args=(port, champion))
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
        except httpx.TransportError:  # it connected, but got no answer
            self.lost += 1
            return False
        if reply.status_code != 200:
            self.refused[str(reply.status_code)] += 1
            return False
        self.answered += 1
        self.versions[reply.json()["answers"][0]["by"]] += 1
        return True


def bare(asked: list[dict[str, Any]]) -> float:
    """Questions per second without a server."""
    served, size = load("bare"), load_settings(ROOT / "params.yaml").serve.limits.questions
    columns = [each["question"] for each in asked], [each["choices"] for each in asked]
    examples = served.answerer.examples(*columns)
    served.answerer.answer_examples(examples[:size])  # the first batch warms up
    began = time.monotonic()
    for first in range(0, len(examples), size):
        served.answerer.answer_examples(examples[first : first + size])
    return len(examples) / (time.monotonic() - began)


class Running:
    """The server and its champion."""

    def __init__(self, port: int, champion: Path) -> None:
        self.port, self.champion = port, champion
        self.process = start(port, champion)

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()

    async def disturb(self, load: Load, part: int) -> None:
        """Halfway through a part, change the champion or restart the server if that is due."""
        if part not in (RESTART, *CHANGES):
            return
        while load.answered < load.asked / 2:
            await asyncio.sleep(0.05)
        if part != RESTART:
            self.champion.write_text(CHANGES[part])
            return
        await asyncio.to_thread(self.stop)
        self.process = await asyncio.to_thread(start, self.port, self.champion)


@contextmanager
def serving(name: str) -> Iterator[Running]:
    with tempfile.TemporaryDirectory() as scratch, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port, champion = free.getsockname()[1], Path(scratch, "champion")
        free.close()
        champion.write_text(name)
        running = Running(port, champion)
        try:
            yield running
        finally:
            running.stop()


def calm(asked: list[dict[str, Any]], clients: int) -> dict[str, Any]:
    """Questions per second and request times, undisturbed; the first ones warm up."""
    with serving("student v1") as running:
        asyncio.run(Load(running.port, asked[:clients]).run(clients))
        load = Load(running.port, asked)
        rate = load.asked / asyncio.run(load.run(clients))
    percentiles = statistics.quantiles(load.seconds, n=100)
    return {
        "rate": rate,
        "p50_ms": round(1000 * percentiles[49]),
        "p99_ms": round(1000 * percentiles[98]),
    }


def disturbed(asked: list[dict[str, Any]], clients: int, part: int) -> dict[str, Any]:
    """One part of the load, with what happens in it."""
    earlier = [name for place, name in CHANGES.items() if place < part]

    async def both(running: Running) -> float:
        load_runs = asyncio.create_task(load.run(clients))
        await running.disturb(load, part)
        return await load_runs

    with serving((["student v1", *earlier])[-1]) as running:
        load = Load(running.port, asked)
        seconds = asyncio.run(both(running))
    return {
        "answered": load.answered,
        "lost": load.lost,
        "refused": dict(load.refused),
        "versions": dict(load.versions),
        "seconds": seconds,
    }


def bare_elsewhere(asked: list[dict[str, Any]]) -> float:
    with SPAWN.Pool(1) as pool:
        return float(pool.apply(bare, (asked,)))


def kept(found: dict[str, Any], name: str, measure: Callable[[], Any]) -> None:
    """Measure this unless an interrupted run already has."""
    if name not in found:
        found[name] = measure()
        write_json(KEPT, found)


def main(count: int, clients: int) -> None:
    asked, size = questions(count), {"questions": count, "clients": clients}
    found = read_json(KEPT) if KEPT.exists() else {}
    if found.get("size") != size:
        found = {"size": size}
    some = asked[: max(count // 5, clients)]
    kept(found, "bare", lambda: bare_elsewhere(some))
    kept(found, "calm", lambda: calm(some, clients))
    edges = [count * part // PARTS for part in range(PARTS + 1)]
    for part in range(PARTS):
        mine = asked[edges[part] : edges[part + 1]]
        kept(found, f"part {part}", lambda m=mine, p=part: disturbed(m, clients, p))
    quiet, parts = found["calm"], [found[f"part {part}"] for part in range(PARTS)]
    line: dict[str, Any] = {
        "benchmark": "serve",
        **size,
        "throughput_vs_bare": round(quiet["rate"] / found["bare"], 3),
        "questions_per_second": round(quiet["rate"], 1),
        "p50_ms": quiet["p50_ms"],
        "p99_ms": quiet["p99_ms"],
        "seconds": round(sum(part["seconds"] for part in parts), 1),
    }
    for name in ("answered", "lost"):
        line[name] = sum(part[name] for part in parts)
    for name in ("refused", "versions"):
        line[name] = dict(sum((Counter(part[name]) for part in parts), Counter()))
    print(json.dumps(line))
    KEPT.unlink()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--questions", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=50)
    given = parser.parse_args()
    main(given.questions, given.clients)
