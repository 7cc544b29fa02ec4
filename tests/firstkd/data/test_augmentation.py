"""Variants of questions: what is kept of them, and what is drawn."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkd.data.augmentation import AugmentSettings, variants
from firstkd.data.examples import Example

PLACES = ["in a den", "in a hive", "at sea", "on a tree", "in a nest"]
FOX = Example("a/fox", "Where is the fox?", "in a den", tuple(PLACES), 0, "a", "train", "g")
TWO = Example("a/two", "Is it?", "", ("yes", "no"), None, "a", "unlabelled")
THINGS = Example("a/red", "What is red?", "a rose", ("a rose", "Grass", "milk"), 0, "a", "train")
OPEN = Example("a/open", "Say it.", "It.", None, None, "a", "train")


def made(examples, **settings):
    return [*variants(examples, AugmentSettings(**settings))]


def test_half_of_the_choices_are_others_and_the_right_one_stays():
    found = made([FOX, THINGS, TWO, OPEN], other_choices=3)
    of_fox = [variant for variant in found if variant.id.startswith("a/fox")]
    assert len({variant.choices for variant in of_fox}) == len(of_fox) == 3
    for variant in of_fox:
        own = {*variant.choices} & {*PLACES}
        assert "in a den" in own
        assert len(own) == 3
        assert {*variant.choices} - own <= {*(THINGS.choices), *(TWO.choices)}
        assert (variant.prompt, variant.group, variant.source) == (FOX.prompt, "g", "a")
    assert {variant.split for variant in found} == {"unlabelled"}
    assert not any(variant.response or variant.answer_index is not None for variant in found)
    assert len({variant.id for variant in found}) == len(found) == 9


def test_orders_are_others_and_each_once():
    found = made([FOX, TWO], orders=4)
    assert [variant.choices for variant in found if variant.id.startswith("a/two")] == [
        ("no", "yes")
    ]
    of_fox = {variant.choices for variant in found if variant.id.startswith("a/fox")}
    assert len(of_fox) == 4
    assert FOX.choices not in of_fox
    assert all(sorted(choices) == sorted(PLACES) for choices in of_fox)


def test_where_all_questions_have_the_same_choices_there_are_no_others():
    assert made([TWO, replace(TWO, id="a/three", prompt="Was it?")], other_choices=2) == []


def test_a_choice_is_not_added_in_another_spelling():
    shouted = replace(THINGS, id="a/loud", choices=("A ROSE!", "grass", "Milk."), answer_index=0)
    assert made([THINGS, shouted], other_choices=2) == []


@given(st.permutations([FOX, THINGS, TWO]))
def test_what_is_made_of_a_question_does_not_depend_on_its_place(order):
    by_id = {variant.id: variant for variant in made(order, orders=2)}
    assert by_id == {variant.id: variant for variant in made([FOX, THINGS, TWO], orders=2)}


def test_nothing_is_made_unless_asked_for():
    assert made([FOX, THINGS]) == []
    assert not AugmentSettings().is_asked_for


@pytest.mark.parametrize("settings", [{"orders": 17}, {"other_choices": -1}])
def test_counts_are_bounded(settings):
    with pytest.raises(ValueError, match=r"less than or equal to 16|greater than or equal to 0"):
        AugmentSettings(**settings)


def test_each_data_set_has_choices_of_its_own():
    other = replace(TWO, id="b/one", source="b", choices=("maybe", "never"))
    found = made([FOX, THINGS, other], other_choices=4)
    assert not {choice for variant in found for choice in variant.choices} & {*other.choices}


def test_equal_questions_have_no_equal_variants():
    turned = replace(FOX, id="a/again", choices=tuple(reversed(PLACES)), answer_index=4)
    found = [variant.choices for variant in made([FOX, turned], orders=8)]
    assert len({*found, FOX.choices, turned.choices}) == len(found) + 2
