from dataclasses import replace
from functools import cache
from itertools import combinations_with_replacement

import pytest

from firstkd.data.examples import Example
from firstkd.data.prompts import encode
from firstkd.data.settings import ChatSettings, PromptSettings
from firstkd.data.spans import Spans, chunks, right_spans
from firstkd.models.folders import load_tokenizer
from tests.firstkd.data.tokenizers_of_kinds import (
    byte_level,
    merging,
    metaspace,
    prepending,
    trimmed_offsets,
)

SETTINGS = PromptSettings(format="cloze", max_length=200)
EXAMPLES = [
    Example("a", "Where does the fox live?", "in a hive", ("in a den", "in a hive"), 1, "s"),
    Example("b", "Say where the bee lives.", "in the nest 12  times.", None, None, "s"),
    Example("c", "Who knows?", "", ("A", "B"), None, "s"),
]


def texts_of(tokenizer, ids):
    return [
        token.translate({0x120: " ", 0x2581: " "}) for token in tokenizer.convert_ids_to_tokens(ids)
    ]


KINDS = (byte_level, trimmed_offsets, prepending, metaspace, merging)
made = cache(lambda kind: kind())


@pytest.mark.parametrize(("left", "right"), combinations_with_replacement(KINDS, 2))
def test_a_chunk_is_the_same_text_to_both_and_the_smallest_there_is(left, right):
    tokenizers = made(left), made(right)
    questions = [encode(EXAMPLES, tokenizer, SETTINGS) for tokenizer in tokenizers]
    spans = [right_spans(EXAMPLES, tokenizer, SETTINGS) for tokenizer in tokenizers]
    for asked, places in zip(zip(*questions, strict=True), zip(*spans, strict=True), strict=True):
        if asked[0].gold is None:
            assert all(not each.ends for each in places)
            continue
        ids = [question.responses[question.gold] for question in asked]
        texts = [texts_of(*pair) for pair in zip(tokenizers, ids, strict=True)]
        behind = [["".join(side[i + 1 :]) for i in range(len(side))] for side in texts]
        # offsets that leave out white space do not show a token of white space alone
        unseen = {
            text
            for kind, side, rests in zip((left, right), texts, behind, strict=True)
            for token, text in zip(side, rests, strict=True)
            if kind is trimmed_offsets and not token.strip()
        }
        cuts = {*behind[0]} & {*behind[1]}
        begin_apart = merging in (left, right) and left is not right
        numbers = chunks(*places)
        for found, rests in zip(numbers, behind, strict=True):
            last = {number: text for number, text in zip(found, rests, strict=True) if number >= 0}
            assert {*last.values()} <= cuts
            missing = cuts - {*last.values()} - unseen
            assert not missing or (begin_apart and missing == {max(cuts - unseen, key=len)})
        assert {*numbers[0]} - {-1} == {*numbers[1]} - {-1}


def test_a_character_of_two_bytes_is_in_one_chunk(tiny_model):
    example = replace(EXAMPLES[1], response="Zoë’s café")
    (ours,), (theirs,) = (
        right_spans([example], tokenizer, SETTINGS)
        for tokenizer in (load_tokenizer(tiny_model), byte_level())
    )
    assert len({*ours.ends}) < len(ours.ends)  # its bytes are tokens
    found = dict(zip(ours.ends, chunks(ours, theirs)[0], strict=True))
    assert sorted({*found.values()}) == [*range(len({*ours.ends} & {*theirs.ends}))]


def test_what_the_two_do_not_share_is_in_no_chunk():
    ours, theirs = Spans(-6, [-4, -3, 0, 1]), Spans(-6, [-5, -3, -1])
    assert chunks(ours, theirs) == ([0, 0, -1, -1], [0, 0, -1])
    assert chunks(ours, theirs._replace(start=-7)) == ([-1] * 4, [-1] * 3)
    assert chunks(Spans(0, []), Spans(0, [])) == ([], [])


def test_the_end_of_a_turn_is_one_chunk_however_a_template_writes_it():
    found = []
    for end in ("</s>", "\n</s>"):
        tokenizer = byte_level()
        tokenizer.chat_template = (
            "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}" + end + "{% endfor %}"
            "{% if add_generation_prompt %}<s>assistant: {% endif %}"
        ).replace("\n", "{{ '\\n' }}")
        settings = PromptSettings(format="chat", max_length=200, chat=ChatSettings(choices="cloze"))
        found += right_spans(EXAMPLES[1:2], tokenizer, settings)
        (question,) = encode(EXAMPLES[1:2], tokenizer, settings)
        assert len(question.responses[0]) == len(found[-1].ends)
    assert found[0].ends[-1:] == [1] and found[1].ends[-2:] == [1, 1]
    ours, theirs = chunks(*found)
    assert ours[-1] == theirs[-1] == theirs[-2] == max(ours) >= 0
