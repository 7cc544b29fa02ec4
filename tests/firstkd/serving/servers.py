"""Real servers on this machine: the application under uvicorn, and others to escalate to."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from firstkd.answering import Answerer
from firstkd.files import write_json
from firstkd.serving.app import create_app
from firstkd.serving.batching import Served
from firstkd.serving.run import Server
from firstkd.serving.settings import ServeSettings

CHOICES = ["in a den", "in a hive", "in the sea"]
QUESTION = "Where does the red fox live?"
ASKED = {"question": QUESTION, "choices": CHOICES}
LIMITS = {"body_bytes": 20_000, "questions": 8, "choices": 6, "waiting": 64, "seconds": 20}


def settings(**changed: Any) -> ServeSettings:
    limits = {**LIMITS, **changed.pop("limits", {})}
    plain = {"policy": None, "abstain_below": None, "cost": None, "escalate": None, "traffic": None}
    plain["drift"] = None
    return ServeSettings.model_validate({**plain, "limits": limits, **changed})


def served(
    model: Path, folder: Path, name: str = "student v1", limit: float | None = None
) -> Served:
    calibration = {"temperature": 2.0, "prompt": {"format": "cloze", "max_length": 64}}
    write_json(folder / f"{name}.json", calibration)
    return Served(name, Answerer.load(model, folder / f"{name}.json", limit))


@dataclass
class Registry:
    """Says who is champion, as flows/serve.py does."""

    champion: Served
    broken: Exception | None = None

    def newest(self, known: str | None) -> Served | None:
        if self.broken:
            raise self.broken
        return None if self.champion.name == known else self.champion


@contextmanager
def serving(registry: Registry, chosen: ServeSettings, **options: Any) -> Iterator[httpx.Client]:
    """Run the server on a free port; yield a client of it."""
    app = create_app(chosen, registry.newest, watch_seconds=0.05, **options)

    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=10)
    server = Server(config)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def ask(client: httpx.Client, *questions: dict[str, Any]) -> list[dict[str, Any]]:
    reply = client.post("/answer", json={"questions": questions or [ASKED]})
    assert reply.status_code == 200, reply.text
    return reply.json()["answers"]


@dataclass
class Teacher:
    """A server that answers by letter, or misbehaves as `mood` says."""

    mood: str = "good"
    asked: list[dict[str, Any]] = field(default_factory=list)
    logins: list[str | None] = field(default_factory=list)
    most_at_once: int = 0
    at_once: int = 0
    url: str = ""

    def reply(self, request: dict[str, Any]) -> tuple[int, bytes]:
        self.asked.append(request)
        if self.mood == "slow":
            time.sleep(3)
        if self.mood == "refusing":
            return 401, b'{"error": "no"}'
        if self.mood == "rubbish":
            return 200, b"<html>"
        if self.mood == "large":
            return 200, b'"' + b"x" * 2_000_000 + b'"'
        content = {"prose": "I would rather not say", "null": None}.get(self.mood, "B")
        top = [("B", -0.5), (" B", -2.0), ("A", -1.5), ("the", -2.5)]
        tokens = [{"token": t, "logprob": p} for t, p in top]
        first: dict[str, Any] = {"message": {"role": "assistant", "content": content}}
        if self.mood != "plain":
            first["logprobs"] = {"content": [{"token": "B", "top_logprobs": tokens}]}
        return 200, json.dumps({"choices": [first]}).encode()


@contextmanager
def teaching(mood: str = "good") -> Iterator[Teacher]:
    teacher, lock = Teacher(mood), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            with lock:
                teacher.at_once += 1
                teacher.most_at_once = max(teacher.most_at_once, teacher.at_once)
            teacher.logins.append(self.headers.get("Authorization"))
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, reply = teacher.reply(json.loads(body))
            with lock:
                teacher.at_once -= 1
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)
            except OSError:
                pass  # whoever asked has given up

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    teacher.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield teacher
    finally:
        server.shutdown()
        server.server_close()
