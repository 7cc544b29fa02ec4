"""Conversations: `messages` of `role` and `content` (OpenAI), or `conversations` of `from` and
`value` (ShareGPT). Every assistant turn is an example, with what was said before it.

Two kinds of assistant turns serve only as context: those before the first user turn (long ShareGPT
conversations are often cut into parts), and those with OpenAI's `weight: 0`.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from firstkd.data.examples import Turn, content_id
from firstkd.data.formats.entry import Entry, Format, Malformed, Unfit, cleaned, is_nothing, name_of
from firstkd.data.records import Record
from firstkd.data.settings import Dataset, Unwanted

ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "developer": "system"}
TOOL_ROLES = {"tool", "function", "function_call", "observation", "ipython"}
TOOL_KEYS = ("tool_calls", "function_call", "tools")
MEDIA_KEYS = ("image", "images", "video", "videos", "audio", "audios")
NOTHING = ("", "[]", "{}", "null", "None")


def messages(dataset: Dataset) -> Format:
    return Format(partial(_parse, dataset), "messages")


def _parse(dataset: Dataset, record: Record, labelled: bool) -> Iterator[Entry]:
    key = "messages" if "messages" in record else "conversations"
    found = record.get(key)
    if not isinstance(found, list) or not all(isinstance(message, dict) for message in found):
        raise Malformed(
            f"expected a list of turns in 'messages' or 'conversations', found {found!r}"
        )
    _refuse_unfit(record)
    turns = [_turn(message) for message in found]
    answers = _answers(turns, may_open="unpaired_turns" not in dataset.skip)
    if not answers:
        problem = "the conversation has no assistant turn that answers the user"
        raise Unfit("unpaired_turns", f"{problem}, so there is nothing to learn")
    name = name_of(record.get("id"), "id") or _content(turns)
    for number, place in enumerate(answers, 1):
        if not _is_learned(found[place]):
            continue
        yield Entry(
            prompt=turns[place - 1].content,
            choices=None,
            response=turns[place].content,
            id=f"{name}#{number}",
            group=name,
            history=tuple(turns[: place - 1]) or None,
        )


def _answers(turns: list[Turn], may_open: bool) -> list[int]:
    """Return the indices of the assistant turns that follow a user turn.

    Raises Unfit for any other assistant turn, except before the first user turn if it `may_open`.
    """
    answers, opening = [], may_open
    for place, turn in enumerate(turns):
        if turn.role == "user":
            opening = False
        elif turn.role == "assistant" and place and turns[place - 1].role == "user":
            answers.append(place)
        elif turn.role == "assistant" and not opening:
            problem = f"turn {place + 1} (assistant) does not follow a user turn"
            raise Unfit("unpaired_turns", problem)
    return answers


def _is_learned(message: dict[str, Any]) -> bool:
    weight = message.get("weight")
    if weight not in (None, 0, 1):
        raise Malformed(f"'weight' must be 0 or 1, found {weight!r}")
    return weight != 0


def _content(turns: list[Turn]) -> str:
    return content_id("", "\n".join(turn.content for turn in turns), None).removeprefix("/")


def _turn(message: dict[str, Any]) -> Turn:
    named = message.get("role", message.get("from"))
    role: Any = ROLES.get(str(named), named)
    if role in TOOL_ROLES:
        raise Unfit("tool_calls", f"a {named!r} turn")
    _refuse_unfit(message)
    if role not in ("system", "user", "assistant"):
        raise Malformed(f"unknown role {named!r}; allowed: system, user, assistant")
    content = message.get("content", message.get("value"))
    if isinstance(content, list):
        content = "\n".join(map(_part, content))
    if is_nothing(content):
        raise Unfit("empty_turns", f"an empty {named!r} turn")
    if not isinstance(content, str):
        raise Malformed(f"the content of a {named!r} turn must be text, found {content!r}")
    return Turn(role, cleaned(content, "content"))


def _part(part: object) -> str:
    """Return the text of one part of a turn's content."""
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else part
    raise Unfit("images", f"content that is not text ({kind!r})")


def _refuse_unfit(holder: dict[str, Any]) -> None:
    """Raise Unfit for tools, images, video or sound in a conversation or a turn."""
    for key in (*TOOL_KEYS, *MEDIA_KEYS):
        if not _is_gap(holder.get(key)):
            holds: Unwanted = "tool_calls" if key in TOOL_KEYS else "images"
            raise Unfit(holds, f"it contains {key!r}")


def _is_gap(value: object) -> bool:
    """Whether a key is there only because other records of the file need it; NaN counts, too."""
    if isinstance(value, dict):
        return all(map(_is_gap, value.values()))
    if isinstance(value, list):
        return all(map(_is_gap, value))
    if isinstance(value, str):
        return value.replace(" ", "") in NOTHING
    return not value or value != value
