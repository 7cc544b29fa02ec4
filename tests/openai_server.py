"""A small server with OpenAI's interface that really computes, over a model in a folder.

    python -m tests.openai_server FOLDER PORT

It gives what vLLM gives (`prompt_logprobs`, `echo` with log-probabilities, `top_logprobs` of chat
completions), or less, as `gives` says; and it can be busy, want a key, or stop in the middle.
"""

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

NAME = "teacher-large"
EVERYTHING = frozenset({"prompt_logprobs", "echo", "letters", "models"})


class Refusal(Exception):
    def __init__(self, status: int, words: str, **headers: str) -> None:
        super().__init__(words)
        self.status, self.headers = status, headers


@dataclass
class OpenAIServer:
    folder: Path
    gives: frozenset[str] = EVERYTHING
    key: str | None = None
    busy: int = 0
    """Of the next requests, so many are refused with status 429."""
    refused_behind: int | None = None
    """Requests after which it no longer answers."""
    longest: int = 512
    """Tokens of a prompt, at most."""
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Path and body of each request that was answered."""
    most_at_once: int = 0
    at_once: int = 0
    url: str = ""
    tells_end: bool = True
    """Whether the token that ends an answer is among those that it gives."""
    seconds: float = 0.0
    """That each request waits before it is computed."""

    def __post_init__(self) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.computing, self.counting = threading.Lock(), threading.Lock()

    def answer(self, path: str, body: dict[str, Any], login: str | None) -> Any:
        if self.key and login != f"Bearer {self.key}":
            raise Refusal(401, f"Incorrect API key provided: {login}")
        if self.busy:
            self.busy -= 1
            raise Refusal(429, "too many requests", **{"Retry-After": "0.01"})
        if path == "models" and "models" in self.gives:
            return {"data": [{"id": NAME}]}
        if path not in ("completions", "chat/completions"):
            raise Refusal(404, "no such path")
        if body["model"] != NAME:
            raise Refusal(404, f"The model `{body['model']}` does not exist.")
        time.sleep(self.seconds)
        with self.computing, torch.inference_mode():
            reply = self.completions(body) if path == "completions" else self.chat(body)
        self.asked.append((path, body))
        return reply

    def logprobs(self, ids: list[int]) -> torch.Tensor:
        return self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)

    def text(self, token: int) -> str:
        return self.tokenizer.decode([token])

    def completions(self, body: dict[str, Any]) -> Any:
        if "prompt_logprobs" in body and "prompt_logprobs" not in self.gives:
            raise Refusal(400, "unexpected field prompt_logprobs")
        choices, tokens = [], 0
        for index, ids in enumerate(body["prompt"]):
            if len(ids) > self.longest:
                raise Refusal(400, f"a prompt of {len(ids)} tokens is too long")
            logprobs = self.logprobs(ids)
            tokens += len(ids)
            choice: dict[str, Any] = {"index": index, "text": self.text(int(logprobs[-1].argmax()))}
            if "prompt_logprobs" in body:
                places = [None]
                for token, row in zip(ids[1:], logprobs, strict=False):
                    best = row.topk(max(1, body["prompt_logprobs"])).indices.tolist()
                    found = dict.fromkeys([token, *best])
                    places.append(
                        {
                            str(i): {"logprob": float(row[i]), "decoded_token": self.text(i)}
                            for i in found
                        }
                    )
                choice["prompt_logprobs"] = places
            if body.get("echo") and "echo" in self.gives:
                generated = int(logprobs[-1].argmax())
                own, tops = [None], [None]
                for token, row in zip([*ids[1:], generated], logprobs, strict=True):
                    own.append(float(row[token]))
                    best = row.topk(body["logprobs"])
                    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
                    tops.append({self.text(i): value for i, value in pairs})
                choice["logprobs"] = {
                    "tokens": [self.text(i) for i in (*ids, generated)],
                    "token_logprobs": own,
                    "top_logprobs": tops,
                }
            choices.append(choice)
        usage = {"prompt_tokens": tokens, "completion_tokens": len(choices)}
        return {"choices": choices, "usage": usage}

    def chat(self, body: dict[str, Any]) -> Any:
        ids = self.tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_dict=False
        )
        written: list[int] = []
        content = []
        while len(written) < body["max_tokens"] and self.tokenizer.eos_token_id not in written:
            best = self.logprobs([*ids, *written])[-1].topk(body["top_logprobs"])
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            top = [{"token": self.text(i), "logprob": value} for i, value in pairs]
            content.append({**top[0], "top_logprobs": top})
            written.append(int(best.indices[0]))
        is_whole = written[-1] == self.tokenizer.eos_token_id
        if is_whole and not self.tells_end:
            del content[-1]
        text = self.tokenizer.decode(written, skip_special_tokens=True)
        choice: dict[str, Any] = {
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop" if is_whole else "length",
        }
        if "letters" in self.gives:
            choice["logprobs"] = {"content": content}
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(written)}
        return {"choices": [choice], "usage": usage}


@contextmanager
def answering(server: OpenAIServer, port: int = 0) -> Iterator[OpenAIServer]:
    """Run it on a port of this machine, a free one by default; it may be run again."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if server.refused_behind is not None and len(server.asked) >= server.refused_behind:
                self.close_connection = True  # without a word, as when it is killed
                return
            with server.counting:
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)
            try:
                self.reply(body)
            finally:
                with server.counting:
                    server.at_once -= 1

        def do_GET(self) -> None:
            self.reply({})

        def reply(self, body: dict[str, Any]) -> None:
            headers: dict[str, str] = {}
            try:
                path = self.path.removeprefix("/v1/")
                found, status = server.answer(path, body, self.headers.get("Authorization")), 200
            except Refusal as refusal:
                found, status = {"error": {"message": str(refusal)}}, refusal.status
                headers = refusal.headers
            text = json.dumps(found).encode()
            try:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)
            except OSError:
                pass  # whoever asked was killed

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

    listening = Server(("127.0.0.1", port), Handler)
    threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02}).start()
    server.url = f"http://127.0.0.1:{listening.server_address[1]}/v1"
    try:
        yield server
    finally:
        listening.shutdown()
        listening.server_close()


if __name__ == "__main__":
    with answering(OpenAIServer(Path(sys.argv[1])), int(sys.argv[2])):
        threading.Event().wait()
