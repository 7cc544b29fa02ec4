"""Corrected answers of served questions become calibration data, and judge the promise."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from firstkd.data.readers import read
from firstkd.data.settings import DatasetSource
from firstkd.errors import DataValidationError
from firstkd.files import read_json_lines
from firstkd.measure.bootstrap import Estimate
from firstkd.serving.drift import drift_lines
from firstkd.serving.settings import PolicySettings
from firstkd.serving.wire import question_id
from tasks.corrections import collect_corrected, kept_words

CHOICES = ["in a den", "in a hive", "in the sea"]
POLICY = PolicySettings(max_error=0.1, confidence=0.9)


def log(root, count, by="student v1", first=0, wrong=0):
    """Write answered questions of which the first `wrong` got another answer than `in a den`."""
    rows = [
        {
            "question": f"Where does fox {n} live?",
            "choices": CHOICES,
            "route": "answered",
            "answer": CHOICES[1 if n < first + wrong else 0],
            "by": by,
        }
        for n in range(first, first + count)
    ]
    folder = root / "logs/traffic"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{first:05d}.parquet")
    return [question_id(row["question"], row["choices"]) for row in rows]


def correct(root, *given, name="corrections.jsonl"):
    file = root / name
    if name.endswith("csv"):
        file.write_text("id,answer\n" + "".join(f"{i},{a}\n" for i, a in given))
    else:
        file.write_text("".join(json.dumps({"id": i, "answer": a}) + "\n" for i, a in given))
    return file


def test_corrected_questions_become_a_data_set_of_role_calibration(tmp_path):
    ids = log(tmp_path, 3)
    file = correct(tmp_path, (ids[0], "in the sea"), (ids[2], "B"), ("gone", "in a den"))
    found = collect_corrected(tmp_path, file, None)
    assert (found.questions, found.unknown, found.promise) == (2, 1, None)
    dataset = DatasetSource(
        source="path:sources/corrected.jsonl", format="questions", role="calibration"
    )
    first, second = read(found.path, dataset, "corrected")
    assert (first.prompt, first.response) == ("Where does fox 0 live?", "in the sea")
    assert (second.prompt, second.response) == ("Where does fox 2 live?", "in a hive")


def test_what_was_corrected_before_stays_though_its_traffic_has_gone(tmp_path):
    [early] = log(tmp_path, 1)
    collect_corrected(tmp_path, correct(tmp_path, (early, "in the sea")), None)
    (tmp_path / "logs/traffic/00000.parquet").unlink()
    [late] = log(tmp_path, 1, first=1)
    file = correct(tmp_path, (late, "in a den"), (early, "in a hive"), name="more.csv")
    found = collect_corrected(tmp_path, file, None)
    assert found.unknown == 0
    assert [row["answer"] for row in read_json_lines(found.path)] == ["in a hive", "in a den"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"id": "ID", "answer": "in space"}, "line 1: 'in space' is not one of the choices"),
        ({"id": "ID", "answer": "D"}, "line 1: 'D' is not one of the choices"),
        ({"id": "ID"}, "line 1: needs `id` and `answer`, both as text"),
        ({"id": "ID", "answer": 2}, "line 1: needs `id` and `answer`, both as text"),
    ],
)
def test_what_is_no_correction_is_named_and_nothing_is_written(tmp_path, line, words):
    [name] = log(tmp_path, 1)
    file = tmp_path / "corrections.jsonl"
    file.write_text(json.dumps({k: name if v == "ID" else v for k, v in line.items()}))
    with pytest.raises(DataValidationError, match=words):
        collect_corrected(tmp_path, file, None)
    assert not (tmp_path / "sources/corrected.jsonl").exists()


def test_the_promise_is_judged_on_the_answers_of_the_version_that_answers_now(tmp_path):
    old = log(tmp_path, 20, by="student v1", wrong=20)
    new = log(tmp_path, 60, by="student v2", first=20, wrong=15)
    file = correct(tmp_path, *((name, "in a den") for name in (*old, *new)))
    found = collect_corrected(tmp_path, file, POLICY)
    assert found.promise.startswith("student v2: wrong: 25.0% of 60 answers (14.7% to 37.9%)")
    assert found.promise.endswith(
        "the promise was at most 10%; it is broken: recalibrate or retrain"
    )
    assert drift_lines(tmp_path / "logs/drift") == [f"promise: {found.promise}"]


def test_a_question_that_many_asked_is_judged_once_by_its_last_answer(tmp_path):
    for first in range(40):
        log(tmp_path, 1, wrong=1)
        file = tmp_path / "logs/traffic/00000.parquet"
        file.rename(file.with_name(f"a{first:04d}.parquet"))
    [name] = log(tmp_path, 1)
    file = tmp_path / "logs/traffic/00000.parquet"
    file.rename(file.with_name("b.parquet"))
    found = collect_corrected(tmp_path, correct(tmp_path, (name, "in a den")), POLICY)
    assert "wrong: 0.0% of 1 answer (" in found.promise


def test_an_answer_in_other_letters_is_the_same_answer(tmp_path):
    rows = [
        {"question": question, "choices": choices, "route": "answered", "answer": choices[0]}
        for question, choices in (("Is it so?", ["Yes", "No"]), ("is it so", ["yes", "no"]))
    ]
    folder = tmp_path / "logs/traffic"
    folder.mkdir(parents=True)
    for number, row in enumerate(rows):
        by = f"student v{number}"
        pq.write_table(pa.Table.from_pylist([{**row, "by": by}]), folder / f"{number}.parquet")
    name = question_id(rows[0]["question"], rows[0]["choices"])
    file = correct(tmp_path, (name, "yes"))
    collect_corrected(tmp_path, file, POLICY)  # as the last one wrote it
    pq.write_table(pa.Table.from_pylist([{**rows[0], "by": "student v2"}]), folder / "2.parquet")
    found = collect_corrected(tmp_path, correct(tmp_path), POLICY)
    assert found.promise.startswith("student v2: wrong: 0.0% of 1 answer (")


def test_traffic_without_answers_says_why_no_promise_is_judged(tmp_path):
    [name] = log(tmp_path, 1)
    file = tmp_path / "logs/traffic/00000.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["answer"]), file)
    found = collect_corrected(tmp_path, correct(tmp_path, (name, "in a den")), POLICY)
    assert found.promise.startswith("student v1: the traffic holds no answers (serve.traffic.drop")
    assert collect_corrected(tmp_path, correct(tmp_path), None).promise is None
    assert drift_lines(tmp_path / "logs/drift") == []  # what no longer holds is not shown


def test_a_promise_is_called_broken_only_beyond_chance():
    verdicts = [
        kept_words(Estimate(value, low, high), 50, 0.1).rpartition("; ")[2]
        for value, low, high in ((0.02, 0, 0.09), (0.08, 0.03, 0.2), (0.12, 0.05, 0.2))
    ]
    assert verdicts == ["it holds", "nothing contradicts it", "it may be broken"]
