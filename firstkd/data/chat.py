"""Examples in a model's own chat template, as transformers applies it (in a sandbox).

Where the template's text ends and others' begins is found by rendering the turns once with marks
in place of their contents. What is asked and answered never passes through the template, so nobody
can write a control token into it; that the template would have rendered the very same text is
checked for every example.
"""

import re
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from firstkd.data.control import control_tokens
from firstkd.data.examples import Example, Turn
from firstkd.data.rendering import Rendered, letter_question
from firstkd.data.settings import ChatSettings
from firstkd.errors import ArtifactError, DataValidationError

MARK = re.compile("\ue000(\\d+)\ue001")
DATE = "26 Jul 2024"
"""Date for templates that print today's, as Llama 3.1 and 3.2 do without a clock: the same
settings give the same tokens on every day."""


class ChatTemplate:
    """Raises ArtifactError for a tokenizer without a template."""

    def __init__(self, tokenizer: Any, settings: ChatSettings) -> None:
        if not tokenizer.chat_template:
            raise ArtifactError(
                "prompt.format: chat: the model's tokenizer has no chat template; name one as "
                "`chat_template` of its source, or set prompt.format to cloze or letter"
            )
        self.tokenizer = tokenizer
        self.settings = settings
        self.template: str = tokenizer.get_chat_template()
        if "strftime_now" in self.template:
            self.template = f"{{% macro strftime_now(f) %}}{DATE}{{% endmacro %}}{self.template}"
        self.control = {token.content for token in control_tokens(tokenizer).values()}
        self.pieces: dict[tuple[str, ...], list[str]] = {}

    def render(self, example: Example) -> Rendered:
        """Return the text of an example; open text ends with the template's end of a turn.

        The prompt is what stands before the assistant's last words, so it ends with the template's
        generation prompt. Raises DataValidationError where the template does not fit the turns.
        """
        question, responses = self._asked(example)
        turns = [*(example.history or ()), Turn("user", question)]
        if self.settings.system and turns[0].role != "system":
            turns.insert(0, Turn("system", self.settings.system))
        answer = responses[0] if responses else "\ue000"
        turns.append(Turn("assistant", answer))
        roles = tuple(turn.role for turn in turns)
        pieces = self._pieces(example.id, roles)
        prompt, head, written = "", None, []
        for text, number in zip(pieces[:-3:2], map(int, pieces[1:-3:2]), strict=True):
            prompt += text
            if head is None and roles[number] != "system":
                head = len(prompt)
            written.append((len(prompt), len(prompt) + len(turns[number].content)))
            prompt += turns[number].content
        prompt += pieces[-3]
        lead = pieces[-2]
        if self._apply(example.id, turns) != prompt + lead + answer + pieces[-1]:
            raise _misfit(example.id, roles, "it changes what the turns say")
        end = "" if example.choices else self._end(pieces[-1])
        led = [lead + response for response in responses]
        return Rendered(prompt, led, end, head or 0, tuple(written))

    def _asked(self, example: Example) -> tuple[str, list[str]]:
        if example.choices is None:
            return example.prompt, [example.response] if example.response else []
        if self.settings.choices == "cloze":
            return example.prompt, [*example.choices]
        return letter_question(example)

    def _pieces(self, name: str, roles: tuple[str, ...]) -> list[str]:
        """Return the template's texts and, between them, the numbers of the turns.

        In place of the answer's number stands the white space that the template puts between its
        generation prompt and the answer, which the model has to give, too (Mistral's has a space).
        """
        if roles not in self.pieces:
            marks = [Turn(role, f"\ue000{i}\ue001") for i, role in enumerate(roles)]  # type: ignore[arg-type]
            pieces = MARK.split(self._apply(name, marks))
            numbers = [*map(int, pieces[1::2])]
            if sorted(numbers) != [*range(len(roles))] or numbers[-1] != len(roles) - 1:
                raise _misfit(name, roles, "it leaves out, repeats or reorders turns")
            asked = MARK.split(self._apply(name, marks[:-1], add_generation_prompt=True))[-1]
            header = pieces[-3]
            lead = header[len(asked) :] if header.startswith(asked) else ""
            pieces[-2] = lead if lead.isspace() else ""
            pieces[-3] = header.removesuffix(pieces[-2])
            self.pieces[roles] = pieces
        return self.pieces[roles]

    def _apply(self, name: str, turns: Sequence[Turn], add_generation_prompt: bool = False) -> str:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            text: str = self.tokenizer.apply_chat_template(
                messages,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                date_string=DATE,
                enable_thinking=False,
            )
        except (TemplateError, TypeError) as error:
            raise _misfit(name, [turn.role for turn in turns], str(error)) from error
        return text

    def _end(self, tail: str) -> str:
        """Return what ends an assistant's turn: up to the first control token behind it."""
        ends = [tail.index(token) + len(token) for token in self.control if token in tail]
        if not ends:
            raise ArtifactError(
                "the model's chat template ends an assistant's turn with no control token, so a "
                "student would not learn to stop; use another as `chat_template` of its source"
            )
        return tail[: min(ends)]


def _misfit(name: str, roles: Sequence[str], problem: str) -> DataValidationError:
    opens = next((role for role in roles if role != "system"), "")
    hint = " (`skip: [unpaired_turns]` leaves it out)" if opens == "assistant" else ""
    return DataValidationError(
        f"example {name}: the model's chat template does not fit its turns ({', '.join(roles)}): "
        f"{problem}; change prompt.chat.system or the data{hint}, or name another template as "
        "`chat_template` of the model's source"
    )
