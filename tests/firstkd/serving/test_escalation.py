"""What the student abstains from goes to a server that may be good, slow, dead or mad."""

import math
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.firstkd.serving.servers import (
    ASKED,
    CHOICES,
    QUESTION,
    Registry,
    ask,
    served,
    serving,
    settings,
    teaching,
)


@pytest.fixture(scope="module")
def unsure(tiny_model, tmp_path_factory):
    """A student that passes on everything."""
    return served(tiny_model, tmp_path_factory.mktemp("unsure"), limit=1.0)


def to(url: str, **changed):
    there = {"kind": "openai", "url": url, "model": "teacher", "timeout_seconds": 5, "parallel": 16}
    return settings(escalate={**there, **changed})


def test_the_answer_says_who_gave_it_and_how_sure(unsure, monkeypatch):
    monkeypatch.setenv("FIRSTKD_ESCALATION_KEY", "its-key")
    with teaching() as teacher, serving(Registry(unsure), to(teacher.url)) as client:
        [told] = ask(client)
        assert (told["route"], told["by"], told["answer"]) == ("escalated", "teacher", CHOICES[1])
        letters = {"A": math.exp(-1.5), "B": math.exp(-0.5) + math.exp(-2.0)}
        assert told["confidence"] == pytest.approx(letters["B"] / sum(letters.values()))
        assert told["guess"] in CHOICES
        assert teacher.logins == ["Bearer its-key"]
        [request] = teacher.asked
        assert QUESTION in request["messages"][0]["content"]
        assert "\nB. in a hive" in request["messages"][0]["content"]
        teacher.mood = "plain"  # without log-probabilities
        [told] = ask(client)
        assert (told["route"], told["confidence"]) == ("escalated", None)


@pytest.mark.parametrize(
    ("mood", "reason"),
    [
        ("refusing", "status 401"),
        ("rubbish", "a reply that is not JSON"),
        ("large", "a reply too large"),
        ("prose", "no letter in the reply"),
        ("null", "no letter in the reply"),
    ],
)
def test_a_server_that_gives_no_answer_leaves_the_students_marked_so(unsure, mood, reason):
    with teaching(mood) as teacher, serving(Registry(unsure), to(teacher.url)) as client:
        [told] = ask(client)
        assert (told["route"], told["reason"], told["by"]) == ("fallback", reason, "student v1")
        assert told["answer"] == told["guess"]
        assert f'reason="{reason}"' in client.get("/metrics").text


def test_a_dead_server_is_asked_five_times_and_then_left_alone(unsure):
    with serving(Registry(unsure), to("http://127.0.0.1:9/v1")) as client:
        reasons = [ask(client)[0]["reason"] for _ in range(8)]
        assert reasons == ["unreachable"] * 5 + ["circuit open"] * 3
        assert client.get("/health").json()["escalation"] == "paused"


def test_questions_that_cannot_be_asked_do_not_count_against_the_server(unsure):
    many = {"question": QUESTION, "choices": [f"in place {n}" for n in range(27)]}
    with teaching() as teacher:
        chosen = to(teacher.url).model_copy(
            update={"limits": settings(limits={"choices": 30}).limits}
        )
        with serving(Registry(unsure), chosen) as client:
            reasons = {ask(client, many)[0]["reason"] for _ in range(6)}
            assert reasons == {"more choices than letters"} and not teacher.asked
            assert ask(client)[0]["route"] == "escalated"


def test_a_slow_server_makes_no_pile_up(unsure):
    with teaching("slow") as teacher:
        chosen = to(teacher.url, timeout_seconds=0.5, parallel=3)
        with serving(Registry(unsure), chosen) as client, ThreadPoolExecutor(20) as pool:
            began = time.monotonic()
            rounds = [list(pool.map(lambda _: ask(client), range(20))) for _ in range(3)]
            found = [told for each in rounds for [told] in each]
            took = time.monotonic() - began
            reasons = {told["reason"] for told in found}
            assert {told["route"] for told in found} == {"fallback"}
            assert reasons == {"time-out", "too many under way", "circuit open"}
            assert len(teacher.asked) <= 9 and teacher.most_at_once <= 9
            assert took < 15
            assert ask(client, *[ASKED] * 8)[7]["route"] == "fallback"


def test_another_registered_model_answers_with_a_confidence_of_its_own(
    unsure, tiny_model, tmp_path
):
    other = served(tiny_model, tmp_path, "teacher v2")
    there = {"kind": "registered", "model": "teacher", "version": "2"}
    chosen = settings(escalate={**there, "timeout_seconds": 5, "parallel": 4})
    with serving(Registry(unsure), chosen, other=other) as client:
        [told] = ask(client)
        [expected] = other.answerer.answer([QUESTION], [CHOICES])
        assert (told["route"], told["by"]) == ("escalated", "teacher v2")
        assert told["answer"] == expected.answer
        assert told["confidence"] == pytest.approx(expected.confidence, abs=1e-6)
