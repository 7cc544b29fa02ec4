"""Render examples: the text of the prompt and of the responses that may follow it.

`cloze` scores every choice as text after the question, `letter` lists the choices and asks for an
option's letter (the paper's format, for models large enough to use letters).
"""

import string
from dataclasses import dataclass

from firstkd.data.examples import Example
from firstkd.data.settings import ChoiceFormat
from firstkd.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Rendered:
    prompt: str
    responses: list[str]
    """The choices, or the one response; empty for unanswered open text."""
    end: str = ""
    """What the template puts after each response."""
    question: tuple[int, int] | None = None
    """Character range of the prompt whose start is cut if the text is too long; None: all of it."""
    written: tuple[tuple[int, int], ...] = ()
    """Character ranges of the prompt that the template did not write."""
    answers: tuple[tuple[int, int], ...] = ()
    """Those that a model wrote, which may contain its own tokens for thinking and tool calls."""
    is_answer: bool = False
    """Whether the response is an answer rather than one of a question's choices."""


PLAIN = {"system": "{}\n\n", "user": "Question: {}\nAnswer:", "assistant": " {}\n\n"}
"""How turns are written in plain text, by role."""


def render_plain(
    example: Example, choice_format: ChoiceFormat, is_viewed: bool = False
) -> Rendered:
    """Render an example as plain text, after the turns of a view if it `is_viewed`.

    Raises ConfigError for a conversation, and for more choices than letters.
    """
    if example.history and not is_viewed:
        raise ConfigError(
            f"params.yaml: prompt.format: {choice_format}: example {example.id} is a conversation; "
            "set it to chat"
        )
    before = "".join(PLAIN[turn.role].format(turn.content) for turn in example.history or ())
    asked, responses = asked_plainly(example, choice_format)
    prompt = before + PLAIN["user"].format(asked)
    responses = [f" {response}" for response in responses]
    return Rendered(prompt, responses, question=(len(before), len(prompt)))


def asked_plainly(example: Example, choice_format: ChoiceFormat) -> tuple[str, list[str]]:
    """Return the question and the responses that may follow it."""
    if example.choices is None or choice_format == "cloze":
        return example.prompt, _responses(example)
    options, letters = lettered(example)
    return f"{example.prompt}\n{options}", letters


def asked_in_chat(example: Example, choice_format: ChoiceFormat) -> tuple[str, list[str]]:
    """Return what the user says and the answers that the assistant may give."""
    if example.choices is None or choice_format == "cloze":
        return example.prompt, _responses(example)
    return letter_question(example)


def _responses(example: Example) -> list[str]:
    if example.choices is None:
        return [example.response] if example.response else []
    return [*example.choices]


def letter_question(example: Example) -> tuple[str, list[str]]:
    """Return a question that a chat model answers with a letter, and the letters.

    Raises ConfigError for more choices than letters.
    """
    options, letters = lettered(example)
    return f"{example.prompt}\n{options}\nAnswer with the letter of an option.", letters


def lettered(example: Example) -> tuple[str, list[str]]:
    """Return the options, one per line, and their letters."""
    choices = example.choices or ()
    letters = list(string.ascii_uppercase[: len(choices)])
    if len(choices) > len(letters):
        raise ConfigError(
            f"params.yaml: prompt.format: letter: example {example.id} has {len(choices)} "
            f"choices, but there are only {len(letters)} letters; set it to cloze"
        )
    options = (f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True))
    return "\n".join(options), letters
