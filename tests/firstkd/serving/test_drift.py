"""Drift of what is served: alarms, who hears of them, and what is shown."""

import asyncio
from random import Random

import pytest

from firstkd.data.examples import Example
from firstkd.files import write_json
from firstkd.serving.drift import PROMISE, Drift, drift_lines
from firstkd.serving.reference import Reference
from firstkd.serving.settings import DriftSettings
from tests.firstkd.serving.servers import ASKED, Registry, ask, served, serving, settings

SETTINGS = DriftSettings(questions=200, false_alarms=0.01)
SHORT, LONG = "Where is it?", "Where in the whole wide world could one find anything like it?"
REFERENCE = Reference([n / 100 for n in range(100)], [len(SHORT) + n % 7 for n in range(100)])


def questions(count: int, text: str = SHORT) -> list[Example]:
    prompts = [text + "!" * (n % 7) for n in range(count)]
    return [Example(prompt, prompt, "", ("a", "b"), None, "") for prompt in prompts]


def watching(reference: Reference | None = REFERENCE, limit: float | None = None, **given) -> Drift:
    drift = Drift(SETTINGS, **given)
    drift.watch("student v1", reference, limit)
    return drift


def sure(count: int, low: float = 0.0) -> list[float]:
    draw = Random(count)
    return [low + (1 - low) * draw.random() for _ in range(count)]


def test_what_is_like_the_calibration_questions_raises_no_alarm():
    drift = watching(limit=0.5)
    for _ in range(5):
        drift.add(questions(100), sure(100))
    assert drift.state.alarm is None and drift.state.questions == 100
    assert drift.state.evidence.keys() == {
        "confidence",
        "prompt length",
        "share below the threshold",
    }


@pytest.mark.parametrize(
    ("text", "low", "of", "words"),
    [
        (LONG, 0.0, "prompt length", "median 6"),
        (SHORT, 0.6, "confidence", "instead of 0.495"),
    ],
)
def test_each_change_is_named_with_what_it_is_now_and_was(text, low, of, words):
    drift = watching()
    drift.add(questions(200, text), sure(200, low))
    assert drift.state.alarm.of == of and words in drift.state.alarm.words
    assert drift.state.alarm.words.startswith(f"student v1: the {of} of served questions differs")


def test_an_alarm_is_announced_once_and_stays_until_as_many_questions_were_calm(tmp_path):
    heard: list[str] = []
    file = tmp_path / "drift" / "8300.json"

    async def story():
        drift = watching(file=file, announce=heard.append)
        for _ in range(3):
            drift.add(questions(200, LONG), sure(200))
            await drift.flush()
        assert len(heard) == 1
        [line] = drift_lines(file.parent)
        assert line.startswith(f"drift: since {drift.state.alarm.since}, student v1: the prompt")
        drift.add(questions(400), sure(400))
        await drift.flush()
        assert drift.state.alarm is None
        [line] = drift_lines(file.parent)
        assert line.startswith("drift: none in the questions student v1 answers (")
        drift.watch("student v2", None, None)
        await drift.flush()

    asyncio.run(story())
    (file.parent / PROMISE).write_text("it holds\n")
    assert drift_lines(file.parent) == [
        "drift: student v2 has no reference to compare with: retrain or recalibrate, unless it "
        "answers open text alone, which is not compared",
        "promise: it holds",
    ]
    assert drift_lines(tmp_path / "nothing served yet") == []


def test_a_running_server_shows_and_announces_it(tiny_model, tmp_path):
    champion = served(tiny_model, tmp_path)
    calibration = tmp_path / "drifting.json"
    kept = {"confidence": [0.999] * 50, "characters": [900] * 50}
    prompt = {"format": "cloze", "max_length": 64}
    write_json(calibration, {"temperature": 2.0, "prompt": prompt, "reference": kept})
    other = type(champion)("student v2", type(champion.answerer).load(tiny_model, calibration))
    heard: list[str] = []
    drift = Drift(SETTINGS, tmp_path / "drift.json", heard.append)
    registry = Registry(champion)
    with serving(registry, settings(), drift=drift) as client:
        ask(client)
        assert client.get("/health").json()["drift"] is None
        registry.champion = other
        while client.get("/health").json()["version"] != other.name:
            pass
        for _ in range(8):
            ask(client, *[ASKED] * 8)
        words = client.get("/health").json()["drift"]
        assert words.startswith("student v2: the ") and "its calibration questions" in words
        assert "firstkd_drift_alarm 1.0" in client.get("/metrics").text
    assert len(heard) == 1 and heard[0].startswith("student v2: the ")
