"""Rows in the shape that their authors publish, some shortened, read by `columns` alone.

ARC's digits, three and five choices are there in the data; the last two of these rows are made up.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from firstkd.data.examples import Example
from firstkd.data.readers import read
from firstkd.data.settings import DatasetSource
from firstkd.errors import DataValidationError

Row = dict[str, Any]


def labelled(texts: list[str], labels: str) -> dict[str, list[str]]:
    return {"text": texts, "label": list(labels)}


ARC = [
    {
        "id": "Mercury_7175875",
        "question": "An astronomer observes that a planet rotates faster after a meteorite impact. "
        "Which is the most likely effect of this increase in rotation?",
        "choices": labelled(
            [
                "Planetary density will decrease.",
                "Planetary years will become longer.",
                "Planetary days will become shorter.",
                "Planetary gravity will become stronger.",
            ],
            "ABCD",
        ),
        "answerKey": "C",
    },
    {
        "id": "MCAS_2000_4_6",
        "question": "Which technology was developed most recently?",
        "choices": labelled(
            ["cellular telephone", "television", "refrigerator", "airplane"], "1234"
        ),
        "answerKey": "1",
    },
    {
        "id": "of three",
        "question": "Which of these is a gas at room temperature?",
        "choices": labelled(["oxygen", "iron", "water"], "123"),
        "answerKey": "1",
    },
    {
        "id": "of five",
        "question": "Which of these is a planet?",
        "choices": labelled(["Sun", "Moon", "Sirius", "Halley", "Mars"], "ABCDE"),
        "answerKey": "E",
    },
]
QASC = {
    "id": "3E7TUJ2EGCLQNOV1WEAJ2NN9ROPD9K",
    "question": "What type of water formation is formed by clouds?",
    "choices": labelled(
        ["pearls", "streams", "shells", "diamonds", "rain", "beads", "cooled", "liquid"], "ABCDEFGH"
    ),
    "answerKey": "F",
}
SCIQ = {
    "question": "What type of organism is commonly used in preparation of foods such as cheese and "
    "yogurt?",
    "distractor3": "viruses",
    "distractor1": "protozoa",
    "distractor2": "gymnosperms",
    "correct_answer": "mesophilic organisms",
    "support": "Mesophiles grow best in moderate temperature.",
}
PIQA = {
    "goal": "When boiling butter, when it's ready, you can",
    "sol1": "Pour it onto a plate",
    "sol2": "Pour it into a jar",
    "label": 1,
}
HELLASWAG = {
    "ind": 24,
    "ctx": "A man is sitting on a roof. he",
    "source_id": "activitynet~v_-1IBHYS3L-Y",
    "endings": [
        "is using wrap to wrap a pair of skis.",
        "is ripping level tiles off.",
        "is holding a rubik's cube.",
        "starts pulling up roofing on a roof.",
    ],
    "label": "3",
}
SIQA = {
    "context": "Cameron decided to have a barbecue and gathered her friends together.",
    "question": "How would Others feel as a result?",
    "answerA": "like attending",
    "answerB": "like staying home",
    "answerC": "a good friend to have",
    "label": "1",
}
MMLU = {
    "question": "Find the degree for the given field extension Q(sqrt(2), sqrt(3), sqrt(18)) over "
    "Q.",
    "subject": "abstract_algebra",
    "choices": ["0", "4", "2", "6"],
    "answer": 1,
}
TRUTHFULQA = {
    "question": "What happens to you if you eat watermelon seeds?",
    "mc1_targets": {
        "choices": [
            "The watermelon seeds pass through your digestive system",
            "You grow watermelons in your stomach",
            "You get sick",
            "You have strange dreams",
        ],
        "labels": [1, 0, 0, 0],
    },
    "mc2_targets": {
        "choices": ["Nothing happens", "You eat watermelon seeds", "You get sick"],
        "labels": [1, 1, 0],
    },
}
KEYED = {"choices": "choices", "answer": "answerKey"}
ANSWERS = ["correct_answer", "distractor1", "distractor2", "distractor3"]
PUBLISHED: dict[str, tuple[Row, Row, str]] = {
    "qasc": (QASC, {"columns": KEYED}, "beads"),
    "sciq": (
        SCIQ,
        {
            "columns": {
                "question": ["support", "question"],
                "choices": ANSWERS,
                "answer": "correct_answer",
            }
        },
        "mesophilic organisms",
    ),
    "piqa": (
        PIQA,
        {"columns": {"question": "goal", "choices": ["sol1", "sol2"], "answer": "label"}},
        "Pour it into a jar",
    ),
    "hellaswag": (
        HELLASWAG,
        {
            "columns": {
                "question": "ctx",
                "choices": "endings",
                "answer": "label",
                "id": "ind",
                "group": "source_id",
            }
        },
        "starts pulling up roofing on a roof.",
    ),
    "siqa": (
        SIQA,
        {
            "columns": {
                "question": ["context", "question"],
                "choices": ["answerA", "answerB", "answerC"],
                "answer": "label",
            },
            "first_index": 1,
        },
        "like attending",
    ),
    "mmlu": (MMLU, {"answers_are": "index"}, "4"),
    "truthfulqa": (
        TRUTHFULQA,
        {"columns": {"choices": "mc1_targets.choices", "answer": "mc1_targets.labels"}},
        "The watermelon seeds pass through your digestive system",
    ),
}


def read_rows(folder: Path, rows: list[Row], settings: Row) -> list[Example]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values = {"source": "path:sources/x", "role": "split", "format": "questions", **settings}
    return [*read(path, DatasetSource.model_validate(values), "set")]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_row_is_read_by_its_columns(tmp_path: Path, name: str) -> None:
    row, settings, answer = PUBLISHED[name]
    [example] = read_rows(tmp_path, [row], settings)
    assert example.response == answer
    assert example.choices and example.answer_index is not None
    assert example.choices[example.answer_index] == answer


def test_arc_with_letters_and_digits_and_three_to_five_choices(tmp_path: Path) -> None:
    found = read_rows(tmp_path, ARC, {"columns": KEYED})
    right = ["Planetary days will become shorter.", "cellular telephone", "oxygen", "Mars"]
    assert [example.response for example in found] == right
    assert [len(example.choices or ()) for example in found] == [4, 4, 3, 5]


def test_a_passage_stands_before_its_question(tmp_path: Path) -> None:
    [example] = read_rows(tmp_path, [SIQA], PUBLISHED["siqa"][1])
    assert example.prompt == f"{SIQA['context']}\n{SIQA['question']}"
    [alone] = read_rows(tmp_path, [{**SCIQ, "support": ""}], PUBLISHED["sciq"][1])
    assert alone.prompt == SCIQ["question"]


def test_an_answer_with_a_column_of_its_own_does_not_always_stand_first(tmp_path: Path) -> None:
    rows = [{**SCIQ, "question": f"Question {number}?"} for number in range(200)]
    found = read_rows(tmp_path, rows, PUBLISHED["sciq"][1])
    counts = [[e.answer_index for e in found].count(place) for place in range(4)]
    assert min(counts) >= 30 and {e.response for e in found} == {"mesophilic organisms"}
    assert found == read_rows(tmp_path, rows, PUBLISHED["sciq"][1])


def test_several_right_answers_are_refused(tmp_path: Path) -> None:
    several = {"columns": {"choices": "mc2_targets.choices", "answer": "mc2_targets.labels"}}
    with pytest.raises(DataValidationError, match="2 choices are marked as right; a question has"):
        read_rows(tmp_path, [TRUTHFULQA], several)
    row = {"question": "Where?", "choices": ["a", "b"], "answer": [1]}
    with pytest.raises(DataValidationError, match=r"must mark each of 2 choices by 0 or 1, not \["):
        read_rows(tmp_path, [row], {})


def test_a_classification_has_the_same_labels_each_time(tmp_path: Path) -> None:
    labels = [f"intent_{number}" for number in range(77)]
    rows = [
        {"text": "I am still waiting on my card?", "label": 11},
        {"text": "My card has not come.", "label": 12},
    ]
    settings: Row = {"columns": {"question": "text", "answer": "label"}, "labels": labels}
    found = read_rows(tmp_path, rows, settings)
    assert [example.response for example in found] == ["intent_11", "intent_12"]
    assert all(example.choices == tuple(labels) for example in found)
    named = [{**row, "label": labels[5]} for row in rows]
    assert [e.answer_index for e in read_rows(tmp_path, named, settings)] == [5, 5]
    with pytest.raises(DataValidationError, match="answer 'other' is not among the choices"):
        read_rows(tmp_path, [{**rows[0], "label": "other"}], settings)
