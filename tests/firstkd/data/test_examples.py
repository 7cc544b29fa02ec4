from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkd.data.examples import (
    Example,
    Turn,
    common_choices,
    content_id,
    example_key,
    normalise,
    read_examples,
    split_by_hash,
    unit_hash,
    write_examples,
)
from firstkd.errors import ArtifactError

CLOSED = Example("a/1", "Where?", "there", ("here", "there"), 1, "a", "train")
OPEN = Example("a/2", "Say hello.", "Hello!", None, None, "a", "train")
SHARES = [("train", 0.6), ("calibration", 0.15), ("test", 0.25)]


def test_what_is_written_is_read_and_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    write_examples(tmp_path / "one.parquet", [CLOSED, OPEN])
    write_examples(tmp_path / "two.parquet", [CLOSED, OPEN])
    assert read_examples(tmp_path / "one.parquet") == [CLOSED, OPEN]
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


def test_no_examples_have_the_schema_too(tmp_path: Path) -> None:
    write_examples(tmp_path / "none.parquet", [])
    assert read_examples(tmp_path / "none.parquet") == []


def test_another_schema_is_refused_with_both(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ArtifactError, match=r"a\.parquet.*found id: int64, expected id: string"):
        read_examples(tmp_path / "a.parquet")


def test_a_damaged_or_missing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(ArtifactError, match=r"a\.parquet: not a parquet file"):
        read_examples(tmp_path / "a.parquet")
    with pytest.raises(ArtifactError, match=r"b\.parquet is missing"):
        read_examples(tmp_path / "b.parquet")


@given(st.text())
def test_a_hash_is_in_the_unit_interval(text: str) -> None:
    assert 0 <= unit_hash(text) < 1
    assert split_by_hash(text, SHARES) in dict(SHARES)


def test_splits_get_their_shares() -> None:
    splits = [split_by_hash(f"id {number}", SHARES) for number in range(4000)]
    for split, share in SHARES:
        assert splits.count(split) / len(splits) == pytest.approx(share, abs=0.025)


def test_splits_never_change() -> None:
    """Pinned: another hash would silently move test questions into train."""
    assert [split_by_hash(f"csqa/{number}", SHARES) for number in range(6)] == [
        "test",
        "test",
        "calibration",
        "calibration",
        "calibration",
        "train",
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Where is  it?", "where is it"),
        ("the “best” way to", 'The "best" way to: '),
        ("ﬁne café", "fine café"),
    ],
)
def test_the_same_question_written_otherwise(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("3 + 4?", "3 - 4?"), ("1.5 m", "15 m"), ("C", "C++"), ("!", "?"), ("résumé", "resume")],
)
def test_other_questions_stay_apart(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


def test_a_content_id_depends_on_source_question_and_choices() -> None:
    base = content_id("a", "Where?", ["x", "y"])
    assert base == content_id("a", "where", ["X", "y"])
    others = [
        content_id("b", "Where?", ["x", "y"]),
        content_id("a", "When?", ["x", "y"]),
        content_id("a", "Where?", ["x", "z"]),
        content_id("a", "Where?", None),
    ]
    assert base not in others


def test_common_choices_are_those_of_every_question_in_any_order() -> None:
    yes_no, no_yes = replace(CLOSED, choices=("no", "yes")), replace(CLOSED, choices=("yes", "no"))
    assert common_choices([yes_no, no_yes, OPEN]) == ["no", "yes"]
    assert common_choices([yes_no, replace(CLOSED, choices=("no", "yes", "maybe"))]) is None
    assert common_choices([OPEN]) is None


def test_a_conversation_survives_its_file_and_is_another_example(tmp_path):
    turns = (Turn("user", "Hello"), Turn("assistant", "Hello!"))
    said = Example("s/1", "Again?", "Yes.", None, None, "s", "train", "s/c", turns)
    write_examples(tmp_path / "a.parquet", [said, replace(said, history=None)])
    assert read_examples(tmp_path / "a.parquet") == [said, replace(said, history=None)]
    assert example_key(said) != example_key(replace(said, history=None))
    assert said.asked == "Hello\nHello!\nAgain?"
