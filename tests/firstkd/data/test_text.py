import pytest

from firstkd.data.text import clean


@pytest.mark.parametrize("text", [" in a den", "in a den\n", "\tin a den \r\n", "\u00a0in a den"])
def test_white_space_around_a_text_is_no_part_of_it(text: str) -> None:
    assert clean(text) == "in a den"


@pytest.mark.parametrize("text", ["a passage\na question", "two  spaces", "a\tb", "شكرا 🦊"])
def test_the_inside_of_a_text_stays(text: str) -> None:
    assert clean(text) == text


@pytest.mark.parametrize("text", ["\ud83d", "a fox \ud83d", "\udd8a!"])
def test_half_a_character_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(ValueError, match=r"half a character, '\\ud[8d]") as caught:
        clean(text)
    str(caught.value).encode()
