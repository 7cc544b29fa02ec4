from dataclasses import replace

import pytest

from firstkd.data.examples import Example
from firstkd.data.prompts import encode
from firstkd.data.settings import PromptSettings
from firstkd.errors import ConfigError, DataValidationError
from firstkd.models.folders import load_tokenizer

CHOICES = ["in a den", "in a hive"]
EXAMPLE = Example("a", "Where does the fox live?", CHOICES[1], tuple(CHOICES), 1, "source")


@pytest.fixture
def tokenizer(tiny_model):
    return load_tokenizer(tiny_model)


def test_cloze_puts_each_choice_behind_the_question(tokenizer):
    settings = PromptSettings(format="cloze", max_length=100)
    [question] = encode([EXAMPLE], tokenizer, settings)
    assert tokenizer.decode(question.prompt) == "Question: Where does the fox live?\nAnswer:"
    assert [tokenizer.decode(ids) for ids in question.responses] == [" in a den", " in a hive"]
    assert question.gold == 1


def test_letter_lists_the_options_and_answers_with_one_token_sequence(tokenizer):
    settings = PromptSettings(format="letter", max_length=100)
    [question] = encode([EXAMPLE], tokenizer, settings)
    assert tokenizer.decode(question.prompt).endswith("?\nA. in a den\nB. in a hive\nAnswer:")
    assert [tokenizer.decode(ids) for ids in question.responses] == [" A", " B"]


def test_more_choices_than_letters_are_named(tokenizer):
    example = replace(EXAMPLE, choices=tuple(map(str, range(27))))
    settings = PromptSettings(format="letter", max_length=200)
    with pytest.raises(ConfigError, match=r"example a has 27 choices.*set prompt.format to cloze"):
        encode([example], tokenizer, settings)
    assert len(encode([example], tokenizer, settings.model_copy(update={"format": "cloze"}))) == 1


def test_open_text_has_one_response_that_ends(tokenizer):
    example = replace(EXAMPLE, choices=None, answer_index=None, response="In a den.")
    [question] = encode([example], tokenizer, PromptSettings(format="cloze", max_length=100))
    assert question.responses[0][-1] == tokenizer.eos_token_id
    assert question.gold == 0


def test_what_is_too_long_loses_the_start_of_its_prompt(tokenizer):
    [whole] = encode([EXAMPLE], tokenizer, PromptSettings(format="cloze", max_length=100))
    longest = max(map(len, whole.responses))
    settings = PromptSettings(format="cloze", max_length=8 + longest)
    [cut] = encode([EXAMPLE], tokenizer, settings)
    assert cut.prompt == whole.prompt[-8:]
    assert cut.responses == whole.responses


def test_a_response_without_room_for_a_prompt_is_named(tokenizer):
    example = replace(EXAMPLE, choices=("a very long choice " * 5, "b"))
    with pytest.raises(DataValidationError, match=r"example a: its response has \d+ tokens"):
        encode([example], tokenizer, PromptSettings(format="cloze", max_length=10))


def test_gold_only_leaves_the_right_response(tokenizer):
    [question] = encode([EXAMPLE], tokenizer, PromptSettings(format="cloze", max_length=100))
    alone = question.gold_only()
    assert alone.responses == [question.responses[1]]
    assert alone.gold == 0
