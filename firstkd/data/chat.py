"""Render examples in a model's own chat template, as transformers applies it (in a sandbox).

Rendering the turns once with marks in place of their contents shows where the template's text ends
and other text begins. Questions and answers are then inserted without passing through the template,
so nobody can write a control token into it. Every example is checked against what the template
itself would have rendered.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError

from firstkd.data.control import control_tokens
from firstkd.data.examples import Example, Turn
from firstkd.data.rendering import Rendered, asked_in_chat
from firstkd.data.settings import ChatSettings
from firstkd.errors import ArtifactError, DataValidationError

MARK = re.compile("\ue000(\\d+)\ue001")
DATE = "26 Jul 2024"
"""Date for templates that print today's, so that the same settings give the same tokens every day.
The templates of Llama 3.1 and 3.2 print it, too, if they have no clock."""


class Layout(NamedTuple):
    """What a template writes around turns: texts, with the numbers of the turns in between."""

    whole: list[str]
    """The conversation with its answer."""
    asked: list[str]
    """The prompt alone."""
    lead: str
    """White space between prompt and answer that the model must generate, too (Mistral's)."""
    has_own_prompt: bool
    """Whether the prompt is not a prefix of the whole, as with Mistral's system prompt."""


class ChatTemplate:
    """A tokenizer's chat template; raises ArtifactError if it has none."""

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
        self.layouts: dict[tuple[str, ...], Layout] = {}

    def render(self, example: Example) -> Rendered:
        """Render an example; open text ends with the template's end-of-turn marker.

        The prompt is everything before the assistant's last turn, so it ends with the template's
        generation prompt. Raises DataValidationError if the template does not fit the turns.
        """
        question, responses = asked_in_chat(example, self.settings.choices)
        turns = [*(example.history or ()), Turn("user", question)]
        if self.settings.system and turns[0].role != "system":
            turns.insert(0, Turn("system", self.settings.system))
        answer = responses[0] if responses else "\ue000"
        turns.append(Turn("assistant", answer))
        roles = tuple(turn.role for turn in turns)
        layout = self._layout(example.id, roles)
        whole, _ = _filled(layout.whole, turns)
        prompt, written = _filled(layout.asked, turns)
        if self._apply(example.id, turns) != whole or (
            layout.has_own_prompt and self._apply(example.id, turns[:-1], True) != prompt
        ):
            raise _misfit(example.id, roles, "it changes what the turns say")
        end = "" if example.choices else self._end(layout.whole[-1])
        led = [layout.lead + response for response in responses]
        return Rendered(
            prompt,
            led,
            end,
            question=written[len(turns) - 2],
            written=tuple(written.values()),
            answers=tuple(place for i, place in written.items() if roles[i] == "assistant"),
            is_answer=example.choices is None,
        )

    def _layout(self, name: str, roles: tuple[str, ...]) -> Layout:
        if roles not in self.layouts:
            marks = [Turn(role, f"\ue000{i}\ue001") for i, role in enumerate(roles)]  # type: ignore[arg-type]
            whole = MARK.split(self._apply(name, marks))
            asked = MARK.split(self._apply(name, marks[:-1], True))
            count = len(roles) - 1
            header = "".join(whole[-3:-2])
            lead = header.removeprefix(asked[-1]) if header.startswith(asked[-1]) else ""
            lead = lead if lead.isspace() else ""
            start = [*whole[:-3], header.removesuffix(lead)]
            # Mistral v0.3 writes the system prompt only while the user's turn is the last
            has_own_prompt = not _has_all(start, count)
            if has_own_prompt and _has_all(asked, count) and asked[-1] + lead == header:
                start = asked
            if not _has_all(start, count) or whole[-2:-1] != [str(count)]:
                raise _misfit(name, roles, "it leaves out, repeats or reorders turns")
            self.layouts[roles] = Layout(whole, start, lead, has_own_prompt)
        return self.layouts[roles]

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
        """Return what ends an assistant's turn: all up to the first control token after it."""
        ends = [tail.index(token) + len(token) for token in self.control if token in tail]
        if not ends:
            raise ArtifactError(
                "the model's chat template ends an assistant's turn with no control token, so a "
                "student would not learn to stop; use another as `chat_template` of its source"
            )
        return tail[: min(ends)]


def _has_all(pieces: Sequence[str], count: int) -> bool:
    return sorted(map(int, pieces[1::2])) == [*range(count)]


def _filled(pieces: Sequence[str], turns: Sequence[Turn]) -> tuple[str, dict[int, tuple[int, int]]]:
    """Return the text with its turns filled in, and each turn's character range by number."""
    text, written = pieces[0], {}
    for number, behind in zip(map(int, pieces[1::2]), pieces[2::2], strict=True):
        said = turns[number].content
        written[number] = (len(text), len(text) + len(said))
        text += said + behind
    return text, written


def _misfit(name: str, roles: Sequence[str], problem: str) -> DataValidationError:
    opens = next((role for role in roles if role != "system"), "")
    hint = " (`skip: [unpaired_turns]` leaves it out)" if opens == "assistant" else ""
    return DataValidationError(
        f"example {name}: the model's chat template does not fit its turns ({', '.join(roles)}): "
        f"{problem}; change prompt.chat.system or the data{hint}, or name another template as "
        "`chat_template` of the model's source"
    )
