"""Questions as a model reads and writes them."""

import pytest

from firstkd.data.examples import Example, Turn
from firstkd.data.settings import DatasetSource
from firstkd.data.written import (
    Asked,
    WriteSettings,
    check_written,
    drafts,
    read,
    shown_questions,
)

FOX = Asked("Where is the fox?", ("in a den", "in a hive"))
BEE = Asked("Where is\nthe bee?", ("at sea", "in a hive", "here"))


def example(asked, **more):
    return Example("a/1", asked.question, asked.choices[0], asked.choices, 0, "a", **more)


@pytest.mark.parametrize("asked", [FOX, BEE])
def test_what_is_shown_is_read_back(asked):
    assert read(asked.text()) == asked
    written = asked.text().removeprefix("Question:")
    assert read(f"{written}\n\nQuestion: Where else?\nAnswers: a | b") == asked
    assert read(f"{written}\nQuestion: Where else?\nAnswers: a | b") == asked


@pytest.mark.parametrize(
    "text",
    [
        " Where is the fox?",
        " Where is the fox?\nAnswers: in a den",
        " Where is the fox?\nAnswers: in a den | In a den! | here",
        " Where is the fox?\nAnswers: in a den |  | here",
        " Where is the fox?\nAnswers: in a den | \u200b | here",
        "\nAnswers: a | b",
        "",
    ],
)
def test_what_is_no_question_is_none(text):
    assert read(text) is None


def test_what_would_not_be_read_back_is_not_shown():
    twice = Asked("One\n\nTwo?", ("a", "b"))
    barred = Asked("Which?", ("a | b", "c"))
    told = example(FOX, history=(Turn("user", "Hello"),))
    assert shown_questions([example(FOX), example(twice), example(barred), told]) == [FOX]


def settings(**changed):
    return WriteSettings.model_validate({"by": "base", "like": "a", "draws": 20, **changed})


def test_each_draw_is_shown_others_and_the_same_every_time():
    shown = [Asked(f"What is {i}?", ("a", "b")) for i in range(50)]
    found = [*drafts(shown, settings(shots=3), seed=1)]
    assert len({draft.prompt for draft in found}) == len(found) == 20
    assert found == [*drafts(shown, settings(shots=3), seed=1)]
    assert found[0] != next(drafts(shown, settings(shots=3), seed=2))
    for draft in found:
        *before, last = draft.prompt.split("\n\n")
        assert last == "Question:"
        assert [read(text) in shown for text in before] == [True] * 3
        assert draft.read(FOX.text()) == FOX


def test_a_paraphrase_keeps_its_choices_and_ends_with_its_line():
    first, second, again = drafts([FOX, BEE], settings(task="paraphrase", draws=3), seed=1)
    assert first == again
    assert second.prompt == "Question: Where is the bee?\nThe same question in other words:"
    assert first.read(" Where does it live?\nQuestion: no") == Asked(
        "Where does it live?", FOX.choices
    )
    assert first.read(" \n") is None
    assert first.is_ended(" Where?\n")
    assert not first.is_ended(" Where")


def test_a_question_is_whole_once_something_follows_it():
    [draft] = drafts([FOX], settings(shots=1, draws=1), seed=1)
    assert draft.is_ended(" Where?\nAnswers: a | b\nQ")
    assert not draft.is_ended(" Where\nis it?\nAnswers: a | b")


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        (
            {"by": "student"},
            "write.more.by: 'student' does not exist, is trained here or is behind",
        ),
        ({"like": "test_set"}, "write.more.like: 'test_set' is not a data set that models learn"),
        ({"like": "talk"}, "write.more.like: 'talk' is open text"),
        ({}, None),
    ],
)
def test_who_writes_what_is_checked(changed, problem):
    source = {"source": "path:sources/a.jsonl", "format": "questions"}
    datasets = {
        "a": DatasetSource.model_validate({**source, "role": "split"}),
        "talk": DatasetSource.model_validate({**source, "format": "messages", "role": "train"}),
        "test_set": DatasetSource.model_validate({**source, "role": "test"}),
    }
    write = settings(**changed)
    if problem is None:
        check_written({"more": write}, {"base"}, datasets)
        with pytest.raises(ValueError, match=r"write\.a: a split or data set already"):
            check_written({"a": write}, {"base"}, datasets)
    else:
        with pytest.raises(ValueError, match=problem):
            check_written({"more": write}, {"base"}, datasets)
