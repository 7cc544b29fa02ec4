from dataclasses import replace

import pytest

from firstkd.data.examples import Example
from firstkd.data.prompts import CHUNK_TEXTS, encode, in_chunks
from firstkd.data.settings import PromptSettings
from firstkd.data.tokenising import starting_ids
from firstkd.errors import ArtifactError, ConfigError, DataValidationError
from firstkd.models.folders import load_tokenizer
from tests.firstkd.data.tokenizers_of_kinds import (
    CONTROL,
    KINDS,
    bos_and_eos_by_post_processor,
    bos_by_post_processor,
    byte_level,
    merging,
    metaspace,
    pad_is_eos,
    prepending,
)

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
    with pytest.raises(ConfigError, match=r"prompt.format: .*example a has 27 choices.*to cloze"):
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


CLOZE = PromptSettings(format="cloze", max_length=200)
LETTER = PromptSettings(format="letter", max_length=200)
PROMPT = "Question: Where does the fox live?\nAnswer:"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("settings", [CLOZE, LETTER], ids=["cloze", "letter"])
def test_prompt_and_response_are_the_ids_of_their_joint_text(kind, settings):
    tokenizer = kind()
    example = replace(EXAMPLE, choices=("in a den", "the sea", "12 times", "désert"))
    [question] = encode([example], tokenizer, settings)
    if settings is CLOZE:
        prompt, responses = PROMPT, [f" {choice}" for choice in example.choices]
    else:
        options = zip("ABCD", example.choices, strict=True)
        listed = "".join(f"\n{letter}. {choice}" for letter, choice in options)
        prompt = PROMPT.replace("\nAnswer", f"{listed}\nAnswer")
        responses = [f" {letter}" for letter in "ABCD"]
    for response, ids in zip(responses, question.responses, strict=True):
        joint = tokenizer(prompt + response)["input_ids"]
        assert question.prompt + ids == [i for i in joint if i != tokenizer.eos_token_id]
    assert question.prompt.count(tokenizer.bos_token_id) == len(starting_ids(tokenizer))


def test_ids_of_the_default_kind_are_those_of_each_text_alone(tokenizer):
    choices = ("in a den", "12 %", "...", " two", "", "\n\tnew line", "déjà vu", "</s>")
    example = replace(EXAMPLE, choices=choices)
    for settings, texts in ((CLOZE, choices), (LETTER, "ABCDEFGH")):
        [question] = encode([example], tokenizer, settings)
        alone = tokenizer(
            [f" {text}" for text in texts], add_special_tokens=False, split_special_tokens=True
        )
        assert question.responses == alone["input_ids"]
    assert question.prompt[-2:] == tokenizer("\nAnswer:")["input_ids"][-2:]


@pytest.mark.parametrize("kind", [prepending, metaspace])
def test_a_response_starts_as_in_the_text_not_with_a_lone_space(kind):
    tokenizer = kind()
    [question] = encode([EXAMPLE], tokenizer, LETTER)
    alone = tokenizer([" A", " B"], add_special_tokens=False)["input_ids"]
    assert [len(ids) for ids in question.responses] == [1, 1]
    if kind is prepending:  # what the texts alone would be
        assert [len(ids) for ids in alone] == [2, 2]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(byte_level, []), (bos_by_post_processor, [1]), (bos_and_eos_by_post_processor, [1])],
)
def test_the_bos_is_the_post_processors_and_stays_when_the_prompt_is_cut(kind, expected):
    tokenizer = kind()
    assert starting_ids(tokenizer) == expected
    [whole] = encode([EXAMPLE], tokenizer, CLOZE)
    longest = max(map(len, whole.responses))
    [cut] = encode([EXAMPLE], tokenizer, CLOZE.model_copy(update={"max_length": 10 + longest}))
    room = 10 - len(expected)
    assert cut.prompt == expected + whole.prompt[-room:]
    assert 2 not in cut.prompt and all(2 not in response for response in cut.responses)


@pytest.mark.parametrize(
    "text", ["He wrote </s> in HTML", "<s>A list", "It was padded: <pad><pad>"]
)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_control_tokens_that_users_write_stay_text(kind, text):
    tokenizer = kind()
    example = replace(EXAMPLE, prompt=text, choices=("<pad>", text))
    [question] = encode([example], tokenizer, CLOZE)
    control = set(tokenizer.convert_tokens_to_ids(CONTROL))
    rest = question.prompt[len(starting_ids(tokenizer)) :]
    assert not control & {*rest, *(i for ids in question.responses for i in ids)}


def test_what_merges_over_the_border_counts_to_the_response():
    tokenizer = merging()
    [question] = encode([EXAMPLE], tokenizer, CLOZE)
    texts = [tokenizer.decode(question.prompt + ids) for ids in question.responses]
    assert texts == [f"{PROMPT} {choice}" for choice in CHOICES]
    assert len(tokenizer.decode(question.prompt)) < len(PROMPT)


def test_what_nobody_has_answered_has_no_gold(tokenizer):
    unlabelled = replace(EXAMPLE, answer_index=None, response="")
    [question] = encode([unlabelled], tokenizer, CLOZE)
    assert question.gold is None and len(question.responses) == 2
    [question] = encode([replace(unlabelled, choices=None)], tokenizer, CLOZE)
    assert question.gold is None and question.responses == []


def test_padding_that_is_the_end_token_still_ends_a_response():
    example = replace(EXAMPLE, choices=None, answer_index=None)
    [question] = encode([example], pad_is_eos(), CLOZE)
    assert question.responses[0][-1] == pad_is_eos().eos_token_id


def test_open_text_without_an_end_token_is_named():
    tokenizer = byte_level()
    tokenizer.eos_token = None
    example = replace(EXAMPLE, choices=None, answer_index=None)
    with pytest.raises(ArtifactError, match="has no end-of-text token"):
        encode([example], tokenizer, CLOZE)


def test_what_is_tokenised_at_a_time_is_bounded_by_its_texts(tokenizer):
    """300 labels for each question would otherwise hold the offsets of 300 texts a question."""
    many = replace(EXAMPLE, choices=tuple(f"label {i}" for i in range(300)), answer_index=0)
    few, alone = replace(many, choices=("a", "b")), replace(many, choices=("a",) * 5000)
    examples = [*[many] * 30, *[few] * 3000, alone, many]
    chunks = list(in_chunks(examples))
    assert [example for chunk in chunks for example in chunk] == examples
    assert [len(chunk) for chunk in chunks if alone in chunk] == [1]
    sizes = [sum(len(example.choices) for example in chunk) for chunk in chunks]
    assert all(size <= CHUNK_TEXTS for size in sizes if size != 5000) and len(chunks) == 6
    settings = PromptSettings(format="cloze", max_length=100)
    assert len(encode([many], tokenizer, settings)[0].responses) == 300
