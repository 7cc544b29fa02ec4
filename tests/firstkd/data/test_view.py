"""What a signal's model reads more than the student, as text and as turns."""

from dataclasses import replace

import pytest
from pydantic import ValidationError
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from firstkd.data.examples import Example, Turn
from firstkd.data.prompts import encode
from firstkd.data.settings import ChatSettings, PromptSettings
from firstkd.data.view import PromptView, Shots, Viewer
from firstkd.errors import ConfigError, DataValidationError
from firstkd.signals.hidden_states import HiddenStates
from tests.firstkd.data.test_chat import tokenizer_of
from tests.firstkd.data.tokenizers_of_kinds import KINDS, byte_level
from tests.firstkd.signals.stores import CHOICES

CHOICES_OF_ALL = ("in a den", "in a hive")
FOX = Example("a/fox", "Where does the fox live?", "in a den", CHOICES_OF_ALL, 0, "a")
BEE = Example("a/bee", "Where does the bee live?", "in a hive", CHOICES_OF_ALL, 1, "a")
ANT = Example("b/ant", "Where is the ant?", "", CHOICES_OF_ALL, None, "b")
MOLE = replace(FOX, id="b/mole", prompt="Where is the mole?", source="b", context="It digs.")
OPEN = Example("c/open", "Say where it is.", "In the sea.", None, None, "c")
EXAMPLES = [FOX, BEE, ANT, MOLE, OPEN]
CLOZE = PromptSettings(format="cloze", max_length=400)
LETTER = PromptSettings(format="letter", max_length=400)
SOLVED = {
    FOX: "Question: Where does the fox live?\nAnswer: in a den\n\n",
    BEE: "Question: Where does the bee live?\nAnswer: in a hive\n\n",
}


def viewer(prompt=CLOZE, **view):
    settings = PromptView(**view)
    shots = Shots(settings.shots)
    for example in EXAMPLES:  # a part at a time
        shots.add([example])
    return Viewer(prompt, settings, shots)


def text_of(question, tokenizer):
    return tokenizer.decode(question.prompt, clean_up_tokenization_spaces=False)


def test_in_plain_text_instructions_and_solved_questions_stand_first():
    tokenizer = byte_level()
    shown = viewer(instructions="Say where they live.", shots=1)
    [fox, bee, open_text] = shown.encode([FOX, BEE, OPEN], tokenizer)
    asked = "Question: Where does the fox live?\nAnswer:"
    assert text_of(fox, tokenizer) == f"Say where they live.\n\n{SOLVED[BEE]}{asked}"
    # no question is shown its own answer, and each those of its kind
    assert SOLVED[FOX] in text_of(bee, tokenizer)
    assert text_of(open_text, tokenizer).startswith("Say where they live.\n\nQuestion: Say where")


def test_letters_are_solved_by_letter():
    tokenizer = byte_level()
    [fox] = viewer(LETTER, shots=1).encode([FOX], tokenizer)
    options = "A. in a den\nB. in a hive\nAnswer:"
    assert text_of(fox, tokenizer) == (
        f"Question: Where does the bee live?\n{options} B\n\n"
        f"Question: Where does the fox live?\n{options}"
    )


def test_a_data_set_without_answers_borrows_another_s():
    tokenizer = byte_level()
    [ant] = viewer(shots=2).encode([ANT], tokenizer)
    assert text_of(ant, tokenizer).count("Answer: in a ") == 2


def test_context_is_read_by_who_has_the_view_alone():
    tokenizer = byte_level()
    [mole, fox] = viewer(context=True).encode([MOLE, FOX], tokenizer)
    assert text_of(mole, tokenizer) == "Question: It digs.\nWhere is the mole?\nAnswer:"
    assert fox == encode([FOX], tokenizer, CLOZE)[0]
    [unseen] = encode([MOLE], tokenizer, CLOZE)
    assert text_of(unseen, tokenizer) == "Question: Where is the mole?\nAnswer:"


def test_what_is_too_long_loses_solved_questions_but_no_instructions():
    tokenizer = byte_level()
    [whole] = viewer(instructions="Say where.", shots=2).encode([FOX], tokenizer)
    limit = len(whole.prompt) + max(map(len, whole.responses)) - 1
    [fox] = viewer(instructions="Say where.", shots=2, max_length=limit).encode([FOX], tokenizer)
    text = text_of(fox, tokenizer)
    assert text.startswith("Say where.\n\nQuestion:")
    assert text.count("Answer:") == 2
    assert fox.responses == whole.responses


@pytest.mark.parametrize("kind", KINDS)
def test_responses_are_the_student_s_whatever_the_tokenizer(kind):
    tokenizer = kind()
    shown = viewer(instructions="Say where.", shots=2, context=True)
    found = shown.encode([FOX, MOLE, OPEN], tokenizer, same_tokens=True)
    for ours, theirs in zip(found, encode([FOX, MOLE, OPEN], tokenizer, CLOZE), strict=True):
        assert (ours.responses, ours.gold, ours.id) == (theirs.responses, theirs.gold, theirs.id)
        assert len(ours.prompt) > len(theirs.prompt)


def test_a_tokenizer_that_cuts_responses_differently_after_the_view_is_refused():
    words = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"Hint[\s\S]*|\S+|\s+"), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    shown = viewer(instructions="Hint")
    shown.encode([FOX], tokenizer)
    with pytest.raises(
        ConfigError, match="example a/fox: after the view's text, the tokenizer splits"
    ):
        shown.encode([FOX], tokenizer, same_tokens=True)


@pytest.mark.parametrize("asks", ["cloze", "letter"])
def test_in_a_chat_they_are_turns(asks):
    chat = PromptSettings(format="chat", max_length=400, chat=ChatSettings(choices=asks))
    shown = viewer(chat, instructions="Be brief.", shots=1)
    told = (Turn("system", "Be kind."), Turn("user", "Hello"), Turn("assistant", "Hi"))
    example = shown.shown(replace(FOX, history=told))
    solved = ("Where does the bee live?", "in a hive")
    if asks == "letter":
        options = "A. in a den\nB. in a hive\nAnswer with the letter of an option."
        solved = (f"Where does the bee live?\n{options}", "B")
    assert example.history == (
        Turn("system", "Be brief.\n\nBe kind."),
        Turn("user", solved[0]),
        Turn("assistant", solved[1]),
        *told[1:],
    )
    tokenizer = tokenizer_of("smollm2")
    [question] = shown.encode([FOX], tokenizer)
    text = tokenizer.decode(question.prompt)
    assert "system\nBe brief." in text
    assert f"assistant\n{solved[1]}" in text


def test_whoever_is_asked_for_letters_reads_solved_letters():
    [*_, user, assistant] = viewer(shots=1).shown(FOX, asks="letter").history
    assert "B. in a hive" in user.content
    assert assistant.content == "B"


def test_shots_do_not_depend_on_how_the_data_are_read():
    at_once = Shots(2)
    at_once.add(reversed(EXAMPLES))
    assert at_once == viewer(shots=2).shots


def test_only_stored_decisions_have_views():
    view = {"instructions": "Say where."}
    with pytest.raises(ValidationError, match="view: a live signal's model reads what the student"):
        type(CHOICES)(kind="choices", of="teacher", live=True, view=view)
    with pytest.raises(ValidationError, match="view: states are compared token by token"):
        HiddenStates(kind="hidden_states", of="teacher", live=False, view=view)


def test_the_prompt_s_own_system_prompt_is_read_as_well():
    chat = PromptSettings(format="chat", max_length=400, chat=ChatSettings(system="Be kind."))
    [system] = viewer(chat, instructions="Be brief.").shown(FOX).history
    assert system == Turn("system", "Be brief.\n\nBe kind.")


def test_a_conversation_shows_no_turn_of_its_own_and_no_system_prompt_of_another():
    chat = PromptSettings(format="chat", max_length=400)
    said = (Turn("system", "You are Ann."), Turn("user", "Hello"), Turn("assistant", "Hi"))
    first = replace(OPEN, id="c/1", group="c/talk", history=said[:1])
    second = replace(OPEN, id="c/2", prompt="And now?", group="c/talk", history=said)
    other = replace(OPEN, id="c/3", prompt="Say when.", history=(Turn("system", "You are Bob."),))
    shots = Shots(1)
    shots.add([first, second, other])
    shown = Viewer(chat, PromptView(shots=1), shots).shown(first)
    assert [turn.content for turn in shown.history] == ["You are Ann.", "Say when.", "In the sea."]


def test_no_question_is_shown_with_its_answer_by_another_name():
    shots = Shots(1)
    shots.add([replace(FOX, id="a/of_a_story", group="a/story"), BEE])
    assert shots.of(FOX) == [BEE]


def test_questions_that_are_asked_twice_take_one_place():
    twice = [replace(BEE, id=f"a/{i}") for i in range(9)]
    shots = Shots(2)
    shots.add([*twice, FOX, MOLE])
    assert len({shot.prompt for shot in shots.of(ANT)}) == 2


def test_a_length_of_a_view_that_shows_nothing_is_refused():
    with pytest.raises(ValidationError, match="max_length: 40, but the view shows nothing"):
        PromptView(max_length=40)


def test_instructions_that_leave_no_room_name_the_view():
    shown = viewer(instructions="Say where. " * 20, max_length=40)
    with pytest.raises(
        DataValidationError, match=r"shows takes \d+ tokens.* the view's max_length"
    ):
        shown.encode([FOX], byte_level())
