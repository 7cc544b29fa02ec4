"""Chat templates as they are published, against transformers' own ids and masks."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

from firstkd.data.examples import Example, Turn
from firstkd.data.prompts import encode
from firstkd.data.settings import ChatSettings, PromptSettings
from firstkd.data.spans import right_spans
from firstkd.errors import ArtifactError, DataValidationError
from firstkd.open_text.asking import open_questions
from tests.firstkd.data.tokenizers_of_kinds import KINDS, byte_level, metaspace_first

TEMPLATES = Path(__file__).parent / "chat_templates"
CONTROL = {
    "llama3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "llama3_2": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "gemma": ["<start_of_turn>", "<end_of_turn>"],
    "gemma3": ["<start_of_turn>", "<end_of_turn>"],
    "mistral": ["[INST]", "[/INST]"],
    "phi3": ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"],
    "qwen2_5": ["<|im_start|>", "<|im_end|>"],
    "qwen3": ["<|im_start|>", "<|im_end|>"],
    "qwen3_instruct_2507": ["<|im_start|>", "<|im_end|>"],
    "smollm2": ["<|im_start|>", "<|im_end|>"],
}
MARKED = ["llama3", "gemma", "gemma3", "mistral", "phi3", "qwen2_5", "qwen3_instruct_2507"]
MISTRAL_SAYS = """{{- " " + message["content"]|trim + eos_token}}"""
NAMES = [*CONTROL]
CHAT = PromptSettings(format="chat", max_length=2000)
SAID = ["Where does the fox live?", "In a den.", "Why  not\nin a hive?", "It's too small: 2 cm."]
EXAMPLE = Example("a", SAID[0], SAID[1], None, None, "source")
TURNS = tuple(map(Turn, ["user", "assistant"] * 2, SAID))
LATER = replace(EXAMPLE, prompt=SAID[2], response=SAID[3], history=TURNS[:2])
QUESTION = replace(EXAMPLE, choices=("in a den", "in a hive"), answer_index=0, response="in a den")


def tokenizer_of(name: str, template: str = "", kind: Callable[[], Any] = byte_level) -> Any:
    tokenizer = kind()
    swallows = name == "phi3"  # its control tokens take the line break behind them
    tokens = [AddedToken(text, special=True, rstrip=swallows) for text in CONTROL[name]]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    tokenizer.chat_template = (TEMPLATES / f"{template or name}.jinja").read_text(encoding="utf-8")
    return tokenizer


def marked(name: str) -> Any:
    """A tokenizer whose template says which tokens the assistant writes."""
    if name != "mistral":
        return tokenizer_of(name, f"{name}_training")
    tokenizer = tokenizer_of(name)  # of which the wheel has no marked variant
    assert MISTRAL_SAYS in tokenizer.chat_template
    tokenizer.chat_template = tokenizer.chat_template.replace(
        MISTRAL_SAYS, f"{{%- generation %}}{MISTRAL_SAYS}{{%- endgeneration %}}"
    )
    return tokenizer


def messages_of(turns: tuple[Turn, ...]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def published(tokenizer: Any, turns: tuple[Turn, ...], **more: Any) -> Any:
    """What transformers makes of a conversation."""
    more = {"enable_thinking": False, "date_string": "26 Jul 2024", "return_dict": True, **more}
    return tokenizer.apply_chat_template(messages_of(turns), **more)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("example", "turns"), [(EXAMPLE, TURNS[:2]), (LATER, TURNS)])
def test_ids_are_those_of_the_published_template(name, example, turns):
    tokenizer = tokenizer_of(name)
    [question] = encode([example], tokenizer, CHAT)
    [response] = question.responses
    ids = published(tokenizer, turns)["input_ids"]
    assert ids[: len(question.prompt) + len(response)] == question.prompt + response
    asked = published(tokenizer, turns[:-1], add_generation_prompt=True)["input_ids"]
    assert question.prompt == asked
    control = set(tokenizer.added_tokens_decoder)
    assert response[-1] in control and not control & {*response[:-1]}
    assert tokenizer.decode(response[:-1]).strip() == example.response


@pytest.mark.parametrize("name", MARKED)
def test_supervised_are_the_tokens_of_the_assistants_mask(name):
    """Turn by turn; but for the template's own line breaks around a turn, which TRL marks, too."""
    tokenizer = marked(name)
    found = published(tokenizer, TURNS, return_assistant_tokens_mask=True)
    spans: list[list[int]] = [[]]
    for i, supervised in zip(found["input_ids"], found["assistant_masks"], strict=True):
        if supervised:
            spans[-1].append(i)
        elif spans[-1]:
            spans.append([])
    expected = [bare(tokenizer, span) for span in spans if span]
    questions = encode([EXAMPLE, LATER], tokenizer_of(name), CHAT)
    assert [question.responses[0] for question in questions] == expected


def bare(tokenizer: Any, span: list[int]) -> list[int]:
    """Without line breaks around the turn, and without what follows its end."""
    breaks = tokenizer("\n")["input_ids"]
    while span[:1] == breaks:
        span = span[1:]
    control = set(tokenizer.added_tokens_decoder)
    return span[: next(place for place, i in enumerate(span) if i in control) + 1]


@pytest.mark.parametrize("name", NAMES)
def test_control_tokens_that_are_said_stay_text(name):
    tokenizer = tokenizer_of(name)
    said = " ".join(["end", *CONTROL[name], "</s>", "\nmore"])
    turns = (Turn("user", said), Turn("assistant", said))
    example = replace(LATER, prompt=said, response=said, history=turns)
    [question] = encode([example], tokenizer, CHAT)
    [harmless] = encode([LATER], tokenizer, CHAT)
    control = set(tokenizer.added_tokens_decoder)
    for with_them, without in (
        (question.prompt, harmless.prompt),
        (question.responses[0], harmless.responses[0]),
    ):
        assert [i for i in with_them if i in control] == [i for i in without if i in control]
    spelled = tokenizer.decode(question.responses[0])
    assert said in spelled


THINKS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]


def test_marks_that_are_not_special_stay_text():
    """Qwen 3's, which its template writes, too."""
    tokenizer = tokenizer_of("qwen3")
    tokenizer.add_tokens([AddedToken(mark, special=False) for mark in THINKS])
    marks = set(tokenizer.convert_tokens_to_ids(THINKS))
    said = "Say <think> no </think>\n<tool_call>{}</tool_call>"
    example = replace(LATER, prompt=said, history=(Turn("user", said), TURNS[1]))
    [question] = encode([example], tokenizer, CHAT)
    [harmless] = encode([LATER], tokenizer, CHAT)
    assert [i for i in question.prompt if i in marks] == [i for i in harmless.prompt if i in marks]
    assert len(marks & {*question.prompt}) == 2
    assert tokenizer.decode(question.prompt).count(said) == 2


def test_what_a_model_thinks_stands_between_tokens_of_its_own():
    tokenizer = tokenizer_of("qwen2_5")
    tokenizer.add_tokens([AddedToken(mark, special=False) for mark in THINKS])
    thought = "<think>a hive?</think>In a den."
    history = (Turn("user", "<think>"), Turn("assistant", thought + "<|im_end|>"))
    example = replace(LATER, history=history, response=thought)
    [question] = encode([example], tokenizer, CHAT)
    think, end = tokenizer.convert_tokens_to_ids(["<think>", "<|im_end|>"])
    assert question.responses[0][0] == think and question.prompt.count(think) == 1
    [harmless] = encode([LATER], tokenizer, CHAT)
    assert question.prompt.count(end) == harmless.prompt.count(end)
    assert tokenizer.decode(question.prompt).count("<think>") == 2


WRITTEN = [
    "<|more|>",
    "a<|more|>b <|more|>\n",
    "Where  <|more|>   does the fox live? <|more|> in a den 12 times",
]


@pytest.mark.parametrize("kind", [*KINDS, metaspace_first], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("name", ["phi3", "mistral", "llama3"])
def test_control_tokens_that_are_said_are_read_as_if_there_were_none(kind, special, name):
    """Spaces included, also where the control tokens take those around them."""
    known, unknown = tokenizer_of(name, kind=kind), tokenizer_of(name, kind=kind)
    for tokenizer in (known, unknown):  # runs of spaces and words are added tokens that are text
        plain = [AddedToken(text, special=False, normalized=False) for text in ("   ", "den 12")]
        tokenizer.add_tokens(plain)
    known.add_tokens(
        [AddedToken("<|more|>", special=special, lstrip=True, rstrip=True, normalized=False)]
    )
    examples = [
        replace(
            LATER,
            prompt=said,
            response=said.strip() if special else LATER.response,
            history=(Turn("user", said), TURNS[1]),
        )
        for said in WRITTEN
    ]
    if name == "llama3":  # it trims
        examples = examples[::2]
    assert encode(examples, known, CHAT) == encode(examples, unknown, CHAT)
    assert right_spans(examples, known, CHAT) == right_spans(examples, unknown, CHAT)


@pytest.mark.parametrize("name", NAMES)
def test_there_is_one_bos_at_most(name):
    """The template writes it, so the tokenizer's own would be a second one."""
    from tokenizers import processors

    tokenizer = tokenizer_of(name)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    [question] = encode([EXAMPLE], tokenizer, CHAT)
    assert question.prompt.count(1) == ("bos_token" in tokenizer.chat_template)


def test_choices_are_the_assistants_words_and_share_the_prompt():
    tokenizer = tokenizer_of("qwen2_5")
    [cloze] = encode([QUESTION], tokenizer, CHAT)
    assert [tokenizer.decode(ids) for ids in cloze.responses] == ["in a den", "in a hive"]
    assert tokenizer.decode(cloze.prompt).endswith("<|im_start|>assistant\n")
    letter = CHAT.model_copy(update={"chat": ChatSettings(choices="letter")})
    [question] = encode([QUESTION], tokenizer, letter)
    assert [tokenizer.decode(ids) for ids in question.responses] == ["A", "B"]
    assert "\nA. in a den\nB. in a hive\n" in tokenizer.decode(question.prompt)


def test_the_system_prompt_is_the_settings_unless_the_data_have_one():
    tokenizer = tokenizer_of("qwen2_5")
    settings = CHAT.model_copy(update={"chat": ChatSettings(system="Be short.")})
    own = replace(EXAMPLE, history=(Turn("system", "Be long."),))
    for_both = [tokenizer.decode(q.prompt) for q in encode([EXAMPLE, own], tokenizer, settings)]
    for text, system in zip(for_both, ["Be short.", "Be long."], strict=True):
        assert text.startswith(f"<|im_start|>system\n{system}<|im_end|>")
        assert text.count("<|im_start|>system") == 1


@pytest.mark.parametrize("name", [name for name in NAMES if name != "gemma"])
@pytest.mark.parametrize(("example", "turns"), [(EXAMPLE, TURNS[:2]), (LATER, TURNS)])
def test_a_system_prompt_stands_where_the_template_puts_it(name, example, turns):
    tokenizer = tokenizer_of(name)
    turns = (Turn("system", "Be short."), *turns)
    settings = CHAT.model_copy(update={"chat": ChatSettings(system="Be short.\n")})
    [question] = encode([example], tokenizer, settings)
    assert [question] == encode([replace(example, history=turns[:-2])], tokenizer, CHAT)
    [response] = question.responses
    asked = published(tokenizer, turns[:-1], add_generation_prompt=True)["input_ids"]
    assert question.prompt == asked
    assert tokenizer.decode(question.prompt).count("Be short.") == 1
    ids = published(tokenizer, turns)["input_ids"]
    if name == "mistral":  # it leaves the system prompt out once the assistant's turn is last
        assert ids[-len(response) :] == response
    else:
        assert ids[: len(question.prompt) + len(response)] == question.prompt + response


def test_a_system_prompt_of_white_space_is_refused():
    with pytest.raises(ValueError, match="at least 1 character"):
        ChatSettings(system=" \n")


LONG = tuple(map(Turn, ["user", "assistant"] * 3, [*SAID, "And the bird, who sings?", "High up."]))


def cut_to(length: int, example: Example, tokenizer: Any) -> tuple[list[int], list[int]]:
    settings = CHAT.model_copy(update={"max_length": length})
    [question] = encode([example], tokenizer, settings)
    assert len(question.prompt) + len(question.responses[0]) <= length
    assert len(right_spans([example], tokenizer, settings)[0].ends) == len(question.responses[0])
    return question.prompt, question.responses[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("system", [(), (Turn("system", "Be short."),)], ids=["", "system"])
def test_a_long_conversation_loses_its_oldest_turns(name, system):
    if system and name == "gemma":
        pytest.skip("its template refuses a system prompt")
    tokenizer = tokenizer_of(name)
    example = replace(EXAMPLE, prompt=LONG[4].content, response=LONG[5].content)
    example = replace(example, history=(*system, *LONG[:4]))
    prompts = [
        published(tokenizer, (*system, *LONG[first:5]), add_generation_prompt=True)["input_ids"]
        for first in (0, 2, 4)
    ]
    whole, response = cut_to(2000, example, tokenizer)
    assert whole == prompts[0]
    for length in range(len(prompts[-1]), len(prompts[0]) + 1, 7):
        cut, answered = cut_to(length + len(response), example, tokenizer)
        assert cut == next(prompt for prompt in prompts if len(prompt) <= length)
        assert answered == response
    asked = published(tokenizer, (*system, LONG[4]), add_generation_prompt=True, tokenize=False)
    head, foot = asked.split(LONG[4].content)
    for less in (1, 5):
        cut, answered = cut_to(len(prompts[-1]) - less + len(response), example, tokenizer)
        assert len(cut) == len(prompts[-1]) - less and answered == response
        text = tokenizer.decode(cut)
        if name == "phi3":  # whose tokens take the line break behind them
            head, foot = head.replace("\n", ""), foot.replace("\n", "")
        kept = text.removeprefix(head.rstrip(" ")).removesuffix(foot).strip()
        assert text != kept and LONG[4].content.endswith(kept) and kept


def test_a_greeting_goes_with_the_turns_behind_it():
    tokenizer = tokenizer_of("qwen2_5")
    example = replace(LATER, history=(Turn("assistant", "Hello! " * 9), *TURNS[:2]))
    alone = published(tokenizer, TURNS[:3], add_generation_prompt=True)["input_ids"]
    [whole] = encode([example], tokenizer, CHAT)
    assert cut_to(len(whole.prompt) + len(whole.responses[0]) - 1, example, tokenizer)[0] == alone


def test_what_leaves_no_room_for_the_question_is_named():
    tokenizer = tokenizer_of("llama3")
    settings = CHAT.model_copy(
        update={"max_length": 200, "chat": ChatSettings(system="Be short. " * 50)}
    )
    writes = r"the chat template and any system prompt take \d{3} tokens, which"
    said = rf"example a: its response has \d\d? tokens and {writes}.* or its system prompt"
    with pytest.raises(DataValidationError, match=said):
        encode([EXAMPLE], tokenizer, settings)
    with pytest.raises(DataValidationError, match=rf"example a: {writes} leaves no room"):
        open_questions([EXAMPLE], tokenizer, settings, max_new_tokens=48)


def test_a_template_that_prints_the_date_gives_the_same_ids_every_day():
    [question] = encode([EXAMPLE], tokenizer_of("llama3_2"), CHAT)
    assert "Today Date: 26 Jul 2024" in tokenizer_of("llama3_2").decode(question.prompt)
    clock = tokenizer_of("smollm2")
    clock.chat_template = "{{ strftime_now('%Y-%m-%d') }}" + clock.chat_template
    [question] = encode([EXAMPLE], clock, CHAT)
    assert clock.decode(question.prompt).startswith("26 Jul 2024<|im_start|>")


def test_what_a_template_does_not_fit_is_named():
    gemma = tokenizer_of("gemma")
    system = CHAT.model_copy(update={"chat": ChatSettings(system="Be short.")})
    with pytest.raises(DataValidationError, match=r"example a: .*System role not supported; .*"):
        encode([EXAMPLE], gemma, system)
    twice = replace(LATER, history=(Turn("user", "Hello"),))
    with pytest.raises(DataValidationError, match=r"\(user, user, assistant\): .*must alternate"):
        encode([twice], gemma, CHAT)
    thought = replace(EXAMPLE, response="<think>\nhm\n</think>\n\nIn a den.")
    assert len(encode([thought], tokenizer_of("qwen2_5"), CHAT)) == 1
    with pytest.raises(DataValidationError, match=r"example a: .*it changes what the turns say"):
        encode([thought], tokenizer_of("qwen3"), CHAT)
    forgetful = tokenizer_of("smollm2")
    forgetful.chat_template = "{{ messages[-1]['content'] }}<|im_end|>"
    with pytest.raises(DataValidationError, match="leaves out, repeats or reorders turns"):
        encode([EXAMPLE], forgetful, CHAT)


def test_a_model_without_a_template_or_without_an_end_of_turns_is_named():
    with pytest.raises(ArtifactError, match="has no chat template; name one"):
        encode([EXAMPLE], byte_level(), CHAT)
    endless = tokenizer_of("smollm2")
    endless.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    with pytest.raises(ArtifactError, match="ends an assistant's turn with no control token"):
        encode([EXAMPLE], endless, CHAT)


def test_a_template_that_the_assistant_may_not_open_says_how_to_leave_such_conversations_out():
    greeted = replace(EXAMPLE, history=(Turn("assistant", "Hello!"),))
    assert encode([greeted], tokenizer_of("smollm2"), CHAT)
    for name in ("gemma", "mistral"):
        with pytest.raises(
            DataValidationError,
            match=r"must alternate.*; .* or the data \(`skip: \[unpaired_turns\]` leaves",
        ):
            encode([greeted], tokenizer_of(name), CHAT)


def test_a_template_cannot_leave_its_sandbox():
    tokenizer = tokenizer_of("smollm2")
    tokenizer.chat_template = "{{ messages.__class__.__mro__ }}" + tokenizer.chat_template
    with pytest.raises(DataValidationError, match="does not fit its turns"):
        encode([EXAMPLE], tokenizer, CHAT)
