import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from firstkd.data.examples import Example, Turn
from firstkd.data.readers import read
from firstkd.data.settings import DatasetSource
from firstkd.errors import DataValidationError

SAID = [
    ("system", "Be short."),
    ("user", "Where does the fox live?"),
    ("assistant", "In a den."),
    ("user", "And the bee?"),
    ("assistant", "In a hive."),
]
OPENAI = {"messages": [{"role": role, "content": text} for role, text in SAID]}
NAMES = {"user": "human", "assistant": "gpt"}
SHAREGPT = {
    "id": "c1",
    "conversations": [{"from": NAMES.get(role, role), "value": text} for role, text in SAID],
}
TURNS = tuple(Turn(role, text) for role, text in SAID)


def dataset(**settings: Any) -> DatasetSource:
    values = {"source": "path:sources/x", "role": "split", "format": "messages", **settings}
    return DatasetSource.model_validate(values)


def read_all(folder: Path, *records: Any, **settings: Any) -> list[Example]:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return [*read(path, dataset(**settings), "chats")]


@pytest.mark.parametrize("record", [OPENAI, SHAREGPT])
def test_every_turn_of_the_assistant_is_an_example_behind_what_was_said(tmp_path, record):
    first, second = read_all(tmp_path, record)
    assert (first.prompt, first.response, first.history) == (SAID[1][1], SAID[2][1], TURNS[:1])
    assert (second.prompt, second.response, second.history) == (SAID[3][1], SAID[4][1], TURNS[:3])
    assert first.choices is None and first.group == second.group is not None
    assert [each.id.partition("#")[2] for each in (first, second)] == ["1", "2"]
    if record is SHAREGPT:
        assert (first.id, first.group) == ("chats/c1#1", "chats/c1")


def test_a_conversation_in_parquet_has_the_ids_of_the_same_in_json(tmp_path):
    path = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_pylist([OPENAI]), path)
    assert [*read(path, dataset(), "chats")] == read_all(tmp_path, OPENAI)


def test_content_in_parts_is_their_text(tmp_path):
    parts = [{"type": "text", "text": "Where does"}, {"type": "text", "text": "the fox live?"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "In a den."}]
    [example] = read_all(tmp_path, {"messages": messages})
    assert example.prompt == "Where does\nthe fox live?" and example.history is None


def with_turn(**turn: Any) -> dict[str, Any]:
    return {"messages": [*OPENAI["messages"][:2], turn, *OPENAI["messages"][2:]]}


UNFIT = {
    "empty_turns": with_turn(role="assistant", content=" \n"),
    "images": with_turn(role="user", content=[{"type": "image_url", "image_url": {"url": "x"}}]),
    "tool_calls": with_turn(role="assistant", content=None, tool_calls=[{"id": "1"}]),
    "unpaired_turns": {"messages": [*OPENAI["messages"], OPENAI["messages"][2]]},
}


LLAVA = {
    "id": "000000033471",
    "image": "coco/train2017/000000033471.jpg",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat are the colors of the bus in the image?"},
        {"from": "gpt", "value": "The bus in the image is white and red."},
    ],
}
TEXT_ALONE = {key: value for key, value in LLAVA.items() if key != "image"}


@pytest.mark.parametrize(
    ("record", "key"),
    [
        (LLAVA, "image"),
        ({**TEXT_ALONE, "images": ["1.jpg"]}, "images"),
        ({**TEXT_ALONE, "videos": ["1.mp4"]}, "videos"),
        ({**TEXT_ALONE, "audios": ["1.wav"]}, "audios"),
        (with_turn(role="user", content="What is this?", images=["1.jpg"]), "images"),
    ],
)
def test_pictures_and_sound_beside_the_text_are_refused_or_skipped(tmp_path, record, key):
    with pytest.raises(DataValidationError, match=f"line 2: it contains '{key}'; add images to"):
        read_all(tmp_path, OPENAI, record)
    assert len(read_all(tmp_path, OPENAI, record, skip=["images"])) == 2


@pytest.mark.parametrize(
    "empty",
    [
        *([], "[]", " [ ] ", "", None, {}, "{}", "null", False, [None]),
        *(float("nan"), {"name": None, "arguments": None}),  # gaps of pandas and of Parquet
    ],
    ids=str,
)
def test_an_empty_list_of_tools_or_images_is_none(tmp_path, empty):
    record = {**OPENAI, "tools": empty, "images": empty}
    record["messages"] = [{**turn, "tool_calls": empty} for turn in OPENAI["messages"]]
    assert read_all(tmp_path, record) == read_all(tmp_path, OPENAI)
    with pytest.raises(DataValidationError, match="it contains 'tools'; add tool_calls to `skip`"):
        read_all(tmp_path, {**OPENAI, "tools": '[{"name": "search"}]'})


def test_an_assistant_that_speaks_first_is_context(tmp_path):
    """As in much of ShareGPT, whose long conversations were cut into parts."""
    cut = {**SHAREGPT, "conversations": SHAREGPT["conversations"][2:]}
    [example] = read_all(tmp_path, cut)
    assert (example.prompt, example.response) == (SAID[3][1], SAID[4][1])
    assert (example.history, example.id) == (TURNS[2:3], "chats/c1#1")
    greeted = {"messages": [OPENAI["messages"][0], *OPENAI["messages"][2:]]}
    [example] = read_all(tmp_path, greeted)
    assert example.history == (TURNS[0], TURNS[2])
    assert len(read_all(tmp_path, cut, OPENAI, greeted, skip=["unpaired_turns"])) == 2


def test_a_turn_of_weight_0_is_context(tmp_path):
    """OpenAI's way to say which answers not to train on."""
    first, second = ({**OPENAI["messages"][i], "weight": int(i == 4)} for i in (2, 4))
    messages = [*OPENAI["messages"][:2], first, OPENAI["messages"][3], second]
    [_, learned] = read_all(tmp_path, OPENAI)
    assert read_all(tmp_path, {"messages": messages}) == [learned]
    with pytest.raises(DataValidationError, match="line 2: 'weight' must be 0 or 1, found"):
        read_all(tmp_path, OPENAI, {"messages": [*messages[:4], {**second, "weight": 0.5}]})


@pytest.mark.parametrize("kind", UNFIT)
def test_what_no_text_model_can_learn_from_is_refused_or_skipped_and_counted(
    tmp_path, kind, caplog
):
    with pytest.raises(DataValidationError, match=rf"line 2: .*; add {kind} to `skip`"):
        read_all(tmp_path, OPENAI, UNFIT[kind])
    path, skipped = tmp_path / "data.jsonl", Counter()
    found = [*read(path, dataset(skip=[kind]), "chats", skipped)]
    assert len(found) == 2 and skipped == {kind: 1}
    told = f"1 with {kind.replace('_', ' ')} (skip)"
    assert f"data.jsonl: records left out: {told}" in caplog.text
    with pytest.raises(DataValidationError, match=rf"every record is left out: {re.escape(told)}"):
        read_all(tmp_path, UNFIT[kind], skip=[kind])


def test_what_is_too_long_is_left_out_and_counted(tmp_path):
    """A conversation goes as a whole, whichever of its turns is too long."""
    longest = max(len(turn["content"]) for turn in OPENAI["messages"])
    early = {"messages": [{**OPENAI["messages"][1], "content": "x" * 500}, *OPENAI["messages"][2:]]}
    path, skipped = tmp_path / "data.jsonl", Counter()
    path.write_text("".join(json.dumps(record) + "\n" for record in (OPENAI, early)))
    found = [*read(path, dataset(skip_longer_than=longest), "chats", skipped)]
    assert len(found) == 2 and skipped == {"too_long": 1}
    assert len([*read(path, dataset(), "chats")]) == 4


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"messages": "Hello"}, "expected a list of turns"),
        ({"text": "Hello"}, "expected a list of turns"),
        (
            {"messages": []},
            "no assistant turn that answers the user, so there is nothing to learn; add",
        ),
        ({"messages": OPENAI["messages"][:2]}, "no assistant turn that answers the user"),
        (
            {"messages": [OPENAI["messages"][i] for i in (0, 2)]},
            "no assistant turn .*; add unpaired_turns",
        ),
        (UNFIT["unpaired_turns"], r"turn 6 \(assistant\) does not follow a user turn; add"),
        (with_turn(role="narrator", content="Hm."), "unknown role 'narrator'; allowed: system"),
        (with_turn(role="tool", content="42"), "a 'tool' turn; add tool_calls to `skip`"),
        (with_turn(role="user", content=7), "the content of a 'user' turn must be text, found 7"),
    ],
)
def test_a_malformed_conversation_is_named(tmp_path, record, problem):
    with pytest.raises(DataValidationError, match=f"line 2: .*{problem}"):
        read_all(tmp_path, OPENAI, record)


def test_only_conversations_have_turns_to_skip():
    with pytest.raises(ValueError, match="skip: only `empty_turns` unless `format: messages`"):
        dataset(format="alpaca", skip=["images"])
