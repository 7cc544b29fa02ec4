"""Conversations: `messages` of `role` and `content` (OpenAI), or `conversations` of `from` and
`value` (ShareGPT). Every turn of the assistant is an example, behind what was said before it.
"""

from collections.abc import Iterator
from typing import Any

from firstkd.data.examples import Turn, content_id
from firstkd.data.formats.entry import Entry, Format, Malformed, Unfit, cleaned, name_of
from firstkd.data.records import Record
from firstkd.data.text import is_blank

ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "developer": "system"}
TOOL_ROLES = {"tool", "function", "function_call", "observation", "ipython"}
TOOL_KEYS = ("tool_calls", "function_call", "tools")


def parse(record: Record, labelled: bool) -> Iterator[Entry]:
    key = "messages" if "messages" in record else "conversations"
    found = record.get(key)
    if not isinstance(found, list) or not all(isinstance(message, dict) for message in found):
        raise Malformed(
            f"expected a list of turns in 'messages' or 'conversations', found {found!r}"
        )
    _refuse_tools(record)
    turns = [_turn(message) for message in found]
    if "assistant" not in [turn.role for turn in turns]:
        raise Malformed("the conversation has no turn of the assistant to learn from")
    name = name_of(record.get("id"), "id") or _content(turns)
    replies = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
    for place in replies:
        if place == 0 or turns[place - 1].role != "user":
            before = turns[place - 1].role if place else "nothing"
            raise Malformed(f"turn {place + 1} of the assistant follows {before}, not the user")
    for number, place in enumerate(replies, 1):
        yield Entry(
            prompt=turns[place - 1].content,
            choices=None,
            response=turns[place].content,
            id=f"{name}#{number}",
            group=name,
            history=tuple(turns[: place - 1]) or None,
        )


def _content(turns: list[Turn]) -> str:
    return content_id("", "\n".join(turn.content for turn in turns), None).removeprefix("/")


def _turn(message: dict[str, Any]) -> Turn:
    named = message.get("role", message.get("from"))
    role: Any = ROLES.get(str(named), named)
    if role in TOOL_ROLES:
        raise Unfit("tool_calls", f"a turn of {named!r}")
    _refuse_tools(message)
    if role not in ("system", "user", "assistant"):
        raise Malformed(f"a turn of {named!r}; allowed are system, user and assistant")
    content = message.get("content", message.get("value"))
    if isinstance(content, list):
        content = "\n".join(map(_part, content))
    if content is None or (isinstance(content, str) and is_blank(content)):
        raise Unfit("empty_turns", f"an empty turn of {named!r}")
    if not isinstance(content, str):
        raise Malformed(f"what {named!r} says must be text, found {content!r}")
    return Turn(role, cleaned(content, "content"))


def _part(part: object) -> str:
    """Return the text of one of the parts that a turn's content can be made of."""
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else part
    raise Unfit("images", f"content that is not text ({kind!r})")


def _refuse_tools(holder: dict[str, Any]) -> None:
    for key in TOOL_KEYS:
        if holder.get(key):
            raise Unfit("tool_calls", f"{key!r}")


MESSAGES = Format(parse, "messages")
