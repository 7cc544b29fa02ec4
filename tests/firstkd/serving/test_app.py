"""The server under uvicorn, asked over HTTP."""

import json
import logging
import select
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest

from firstkd.errors import PipelineError
from firstkd.serving import run
from tests.firstkd.serving.servers import (
    ASKED,
    CHOICES,
    QUESTION,
    Registry,
    ask,
    served,
    serving,
    settings,
)

TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def champion(tiny_model, tmp_path_factory):
    return served(tiny_model, tmp_path_factory.mktemp("champion"))


@pytest.fixture(scope="module")
def client(champion):
    with serving(Registry(champion), settings()) as client:
        yield client


def test_answers_are_those_of_the_student(client, champion):
    other = {"question": "Where does the old bird live?", "choices": CHOICES[:2]}
    expected = champion.answerer.answer([QUESTION, other["question"]], [CHOICES, CHOICES[:2]])
    for told, answer in zip(ask(client, ASKED, other), expected, strict=True):
        assert (told["route"], told["by"]) == ("answered", "student v1")
        assert told["answer"] == told["guess"] == answer.answer
        assert told["confidence"] == pytest.approx(answer.confidence, abs=1e-6)


def test_below_the_threshold_it_abstains_and_keeps_its_guess_apart(tiny_model, tmp_path):
    with serving(Registry(served(tiny_model, tmp_path, limit=1.0)), settings()) as client:
        [told] = ask(client)
        assert (told["route"], told["answer"]) == ("abstained", None)
        assert told["guess"] in CHOICES
        assert client.get("/health").json()["threshold"] == 1.0


def test_many_clients_share_batches_and_each_gets_its_own_answers(client, champion):
    asked = [
        {"question": f"Where does the {n}th fox live?", "choices": CHOICES[: 2 + n % 2]}
        for n in range(60)
    ]
    expected = champion.answerer.answer(
        [each["question"] for each in asked], [each["choices"] for each in asked]
    )
    with ThreadPoolExecutor(20) as pool:
        found = [told for [told] in pool.map(lambda each: ask(client, each), asked)]
    for told, answer in zip(found, expected, strict=True):
        assert told["answer"] == answer.answer
        assert told["confidence"] == pytest.approx(answer.confidence, abs=1e-6)
    lines = client.get("/metrics").text.splitlines()
    batches, questions = (
        float(next(line for line in lines if line.startswith(name)).split()[1])
        for name in ("firstkd_batch_questions_count", "firstkd_batch_questions_sum")
    )
    assert batches < questions


BAD = [
    (b"not JSON", 400, "the body is not JSON"),
    (b'{"questions": []}', 422, "questions: "),
    (b"[" * 9000, 400, ""),
    (b'{"questions": [{"question": "a\\u0000b", "choices": ["x", "y"]}]}', 422, "question: "),
    (b'{"questions": [{"question": "a\\ud83d", "choices": ["x", "y"]}]}', 422, "question: "),
    (b'{"questions": [{"question": 3, "choices": ["x", "y"]}]}', 422, "question: "),
    (b'{"questions": [{"question": "secret", "choices": ["x"]}]}', 422, "choices: "),
    (b'{"questions": [{"question": "secret", "model": "../../etc"}]}', 422, "model: Extra"),
    (b'{"questions": [{"question": "secret"}]}', 422, "has no choices"),
    (b'{"questions": [{"question": " ", "choices": ["x", "y"]}]}', 422, "is empty"),
    (b'{"questions": [%s]}' % b",".join([b'{"question": "q"}'] * 9), 413, "9 questions; at most 8"),
    (
        b'{"questions": [{"question": "q", "choices": [%s]}]}' % b",".join([b'"c"'] * 4000),
        413,
        "4000 choices; at most 6",
    ),
    (b'{"questions": "%s"}' % (b"x" * 30_000), 413, "the body exceeds 20000 bytes"),
]


@pytest.mark.parametrize(("body", "status", "words"), BAD)
def test_what_is_wrong_is_refused_and_the_server_lives_on(client, caplog, body, status, words):
    with caplog.at_level(logging.WARNING):
        reply = client.post("/answer", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == status and words in reply.text
    assert f"refused a request to /answer with status {status}" in caplog.text
    assert "secret" not in caplog.text
    assert len(ask(client)) == 1


def test_a_body_of_no_declared_length_is_cut_off_too(client):
    reply = client.post("/answer", content=(b"x" * 1000 for _ in range(100)))
    assert reply.status_code == 413


def test_ten_thousand_choices_are_refused(champion):
    limits = {"body_bytes": 1_000_000, "choices": 64}
    with serving(Registry(champion), settings(limits=limits)) as client:
        asked = {**ASKED, "choices": [f"choice {n}" for n in range(10_000)]}
        reply = client.post("/answer", json={"questions": [asked]})
        assert reply.status_code == 413
        assert reply.json() == {"error": "a question has 10000 choices; at most 64"}
        assert len(ask(client)) == 1


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((name, 200) for name in ("127.0.0.1:8300", "localhost", "127.1.2.3", "[::1]:80")),
        *((name, 421) for name in ("evil.example", "127.0.0.1.evil.example:80", "10.0.0.1", "[")),
    ],
)
def test_without_a_token_only_this_machines_names_are_answered(client, host, status):
    assert client.get("/health", headers={"Host": host}).status_code == status


def test_paths_and_methods_that_are_not_there(client):
    assert client.get("/../../etc/passwd").status_code == 404
    assert client.get("/answer").status_code == 405
    assert client.get("/openapi.json").json()["paths"].keys() == {"/answer", "/health", "/metrics"}


def test_with_a_token_nothing_but_the_health_is_told_without_it(champion):
    with serving(Registry(champion), settings(), token=TOKEN) as client:
        assert client.get("/health", headers={"Host": "student.example"}).status_code == 200
        assert client.get("/health").json()["version"] == "student v1"
        for path in ("/metrics", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 401
        for login in (None, "Bearer", f"Bearer {TOKEN}x", TOKEN, "Bearer \xff"):
            headers = {} if login is None else {"Authorization": login.encode("latin-1")}
            reply = client.post("/answer", json={"questions": [ASKED]}, headers=headers)
            assert reply.status_code == 401
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        assert ask(client) and client.get("/metrics").status_code == 200


def test_a_new_champion_takes_over_without_losing_a_request(tiny_model, tmp_path):
    versions = [served(tiny_model, tmp_path, f"student v{n}") for n in (1, 2, 3)]
    registry, found, stop = Registry(versions[0]), [], threading.Event()
    with serving(registry, settings()) as client:

        def keep_asking() -> None:
            while not stop.is_set():
                found.append(ask(client)[0]["by"])

        clients = [threading.Thread(target=keep_asking) for _ in range(8)]
        for each in clients:
            each.start()
        for version in versions[1:]:
            registry.champion = version
            while client.get("/health").json()["version"] != version.name:
                pass
            ask(client)
        stop.set()
        for each in clients:
            each.join()
        assert ask(client)[0]["by"] == "student v3"
        [shown] = [x for x in client.get("/metrics").text.splitlines() if "firstkd_version{" in x]
        assert shown == 'firstkd_version{version="student v3"} 1.0'
    assert set(found) >= {"student v1", "student v2"} and len(found) > 16


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (PipelineError("MLflow does not answer"), "cannot be read: MLflow does not answer"),
        (MemoryError("two are too many"), "loading the next failed: MemoryError: two are too many"),
    ],
    ids=["registry", "memory"],
)
def test_what_keeps_the_next_champion_away_leaves_the_last_one_in_charge(
    champion, tiny_model, tmp_path, caplog, broken, words
):
    registry = Registry(champion)
    with serving(registry, settings()) as client:
        registry.broken = broken
        registry.champion = served(tiny_model, tmp_path, "student v2")
        while words not in caplog.text:
            assert ask(client)[0]["by"] == "student v1"
        registry.broken = None
        while client.get("/health").json()["version"] != "student v2":
            pass


def test_what_is_too_much_is_refused_at_once(tiny_model, tmp_path):
    """The model is held up, so that questions pile up before it."""
    champion, free = served(tiny_model, tmp_path), threading.Event()
    entrance = champion.answerer.model.get_input_embeddings()
    entrance.register_forward_pre_hook(lambda *_: free.wait(10) and None)
    chosen = settings(limits={"waiting": 3, "questions": 1, "seconds": 2})
    with serving(Registry(champion), chosen) as client, ThreadPoolExecutor(12) as pool:
        body = {"questions": [ASKED]}
        replies = list(pool.map(lambda _: client.post("/answer", json=body), range(12)))
        statuses = {reply.status_code for reply in replies}
        free.set()
        assert statuses == {503, 504}
        assert all(r.headers["Retry-After"] == "1" for r in replies if r.status_code == 503)
        assert "not answered within 2 seconds" in next(
            reply.text for reply in replies if reply.status_code == 504
        )
        assert ask(client)[0]["route"] == "answered"


def test_a_stop_ends_what_is_under_way_first(tiny_model, tmp_path):
    registry = Registry(served(tiny_model, tmp_path))
    with serving(registry, settings()) as client:
        url = client.base_url

        def once(_: int) -> int | str:
            try:
                body = {"questions": [ASKED]}
                reply = httpx.post(f"{url}/answer", json=body, trust_env=False)
            except httpx.ConnectError:
                return "nobody there"
            assert reply.status_code == 200 or reply.headers["Retry-After"] == "5"
            return reply.status_code

        pool = ThreadPoolExecutor(8)
        replies = [pool.submit(once, n) for n in range(40)]
        replies[0].result()
    found = [reply.result() for reply in replies]
    assert set(found) <= {200, 503, "nobody there"} and 200 in found


def test_what_comes_to_a_stopping_server_is_refused_with_a_status(champion, monkeypatch):
    """Idle, within the head of a request, or only just there; but a request with its head is in."""
    monkeypatch.setattr(run, "LINGER_SECONDS", 3.0)  # for a busy machine
    body = json.dumps({"questions": [ASKED]}).encode()
    head = b"POST /answer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    whole = head + b"Content-Length: %d\r\n\r\n" % len(body) + body

    def send(connection: socket.socket, rest: bytes) -> bytes:
        connection.sendall(rest[: -len(body)])
        # an answer before the body would close the connection while its client still sends
        assert not select.select([connection], [], [], 0.1)[0]
        connection.sendall(rest[-len(body) :])
        reply = b""
        while part := connection.recv(65536):
            reply += part
        return reply

    with ThreadPoolExecutor(1) as pool, ExitStack() as server:
        client = server.enter_context(serving(Registry(champion), settings()))
        place, url = ("127.0.0.1", client.base_url.port), f"{client.base_url}/health"
        idle, half, begun = (socket.create_connection(place) for _ in range(3))
        half.sendall(whole[:60])
        begun.sendall(whole[:100])
        ask(client)

        def once_it_stops() -> list[bytes]:
            while httpx.get(url, trust_env=False).status_code != 503:
                pass
            late = socket.create_connection(place)
            rests = {idle: whole, half: whole[60:], late: whole, begun: whole[100:]}
            return [send(connection, rest) for connection, rest in rests.items()]

        replies = pool.submit(once_it_stops)
        server.close()
        *refused, answered = replies.result()
    assert answered.startswith(b"HTTP/1.1 200 ") and b"connection: close" in answered.lower()
    for reply in refused:
        assert reply.startswith(b"HTTP/1.1 503 ") and b"retry-after: 5" in reply.lower()
        assert b"connection: close" in reply.lower()
