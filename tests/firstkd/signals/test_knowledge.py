import json
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstkd.data.prompts import Question
from firstkd.errors import ArtifactError, ConfigError
from firstkd.signals.knowledge import (
    MANIFEST,
    Knowledge,
    KnowledgeStore,
    Layout,
    example_key,
    write_manifest,
    write_shard,
)

IDENTITY = {"teacher_sha256": "a" * 64, "precision": "bf16", "top_k": 5}
QUESTIONS = [Question(str(i), [i, i + 1], [[7] * (i + 1)], 0) for i in range(6)]


def random_knowledge(records: int, layout: Layout, seed: int = 0) -> Knowledge:
    generator = torch.Generator().manual_seed(seed)
    logprobs = torch.randn(records, layout.top_k + 2, generator=generator).log_softmax(-1)
    return Knowledge(
        top_ids=torch.randint(layout.vocabulary_size, (records, layout.top_k), generator=generator),
        top_logprobs=logprobs[:, : layout.top_k],
        log_tail_mass=logprobs[:, layout.top_k :].logsumexp(-1),
        gold_logprob=logprobs[:, 0],
        tail_bends=torch.randn(records, layout.tail_nodes, generator=generator),
        vocabulary_size=layout.vocabulary_size,
    )


def layout_of(vocabulary: int = 49_152, top_k: int = 5, tail_nodes: int = 0) -> Layout:
    return Layout(kind="token", top_k=top_k, vocabulary_size=vocabulary, tail_nodes=tail_nodes)


def write_store(folder, counts_by_shard, layout=None) -> Knowledge:
    """A store of QUESTIONS in order, with so many records each; returns what went in."""
    layout = layout or layout_of()
    folder.mkdir()
    written, questions = [], iter(QUESTIONS)
    for number, counts in enumerate(counts_by_shard):
        part = random_knowledge(sum(counts), layout, seed=number)
        keys = torch.tensor([example_key(next(questions)) for _ in counts])
        write_shard(folder, number, layout, part, keys, torch.tensor(counts, dtype=torch.int32))
        written.append(part)
    write_manifest(folder, layout, IDENTITY)
    return Knowledge.concatenate(written)


@pytest.mark.parametrize(
    "layout",
    [
        layout_of(400),
        layout_of(49_152, tail_nodes=8),
        layout_of(151_936),
        layout_of(2**20, top_k=4, tail_nodes=8),
        layout_of(70_000, top_k=1),
    ],
)
def test_what_was_written_is_read_back_by_example(tmp_path, layout):
    counts = [[1, 0, 3], [2, 4], [1]]
    written = write_store(tmp_path / "store", counts, layout)
    store = KnowledgeStore(tmp_path / "store")
    store.check(IDENTITY, QUESTIONS)
    starts = [0, 1, 1, 4, 6, 10]
    for example, count in enumerate(chain.from_iterable(counts)):
        found = store.of_examples(torch.tensor([example]))
        rows = slice(starts[example], starts[example] + count)
        torch.testing.assert_close(found.top_ids, written.top_ids[rows])
        for name in ("top_logprobs", "log_tail_mass", "gold_logprob", "tail_bends"):
            expected = getattr(written, name)[rows]
            torch.testing.assert_close(getattr(found, name), expected, atol=1e-6, rtol=2**-11)
    together = store.of_examples(torch.tensor([4, 0, 1, 2]))
    torch.testing.assert_close(together.top_ids, written.top_ids[[6, 7, 8, 9, 0, 1, 2, 3]])


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=2), min_size=1, max_size=3))
@settings(max_examples=20, deadline=None)
def test_round_trip_of_any_shape(tmp_path_factory, counts):
    folder = tmp_path_factory.mktemp("stores") / "store"
    written = write_store(folder, counts)
    store = KnowledgeStore(folder)
    every = store.of_examples(torch.arange(len(list(chain.from_iterable(counts)))))
    torch.testing.assert_close(every.top_ids, written.top_ids)
    torch.testing.assert_close(every.gold_logprob, written.gold_logprob, atol=3e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("layout", "size"),
    [
        (layout_of(65_536), 24),
        (layout_of(151_936), 27),
        (layout_of(65_536, tail_nodes=8), 40),
        (layout_of(151_936, tail_nodes=8), 43),
    ],
)
def test_bytes_of_a_record_at_k_5(layout, size):
    stored = layout.pack(random_knowledge(1, layout))
    assert sum(tensor.nbytes for tensor in stored.values()) == size


@given(st.lists(st.integers(0, 2**20 - 1), min_size=1, max_size=9))
def test_wide_ids_survive_their_split_into_16_and_4_bits(ids):
    layout = layout_of(2**20, top_k=len(ids))
    knowledge = random_knowledge(1, layout)
    object.__setattr__(knowledge, "top_ids", torch.tensor([ids]))
    assert layout.unpack(layout.pack(knowledge)).top_ids.tolist() == [ids]


def test_what_the_format_cannot_hold_is_refused():
    with pytest.raises(ConfigError, match="up to 1,048,576"):
        layout_of(2**20 + 1)
    with pytest.raises(ConfigError, match="leaves no tail"):
        layout_of(5)


def test_a_flipped_byte_is_found_on_opening(tmp_path):
    write_store(tmp_path / "store", [[2, 2]])
    shard = tmp_path / "store/00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"00000\.safetensors is damaged"):
        KnowledgeStore(tmp_path / "store")


@pytest.mark.parametrize("length", [0, 7, 100])
def test_a_truncated_shard_is_found_on_opening(tmp_path, length):
    write_store(tmp_path / "store", [[2, 2]])
    shard = tmp_path / "store/00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:length])
    with pytest.raises(ArtifactError, match=r"00000\.safetensors is damaged"):
        KnowledgeStore(tmp_path / "store")


def test_a_missing_shard_and_a_missing_manifest_are_named(tmp_path):
    write_store(tmp_path / "store", [[2], [2]])
    (tmp_path / "store/00001.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"00001\.safetensors is missing"):
        KnowledgeStore(tmp_path / "store")
    (tmp_path / "store" / MANIFEST).unlink()
    with pytest.raises(ArtifactError, match=r"manifest\.json is missing"):
        KnowledgeStore(tmp_path / "store")


def test_a_store_of_another_version_is_refused(tmp_path):
    write_store(tmp_path / "store", [[2]])
    manifest = json.loads((tmp_path / "store" / MANIFEST).read_text())
    (tmp_path / "store" / MANIFEST).write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(ArtifactError, match="knowledge format 99"):
        KnowledgeStore(tmp_path / "store")


def test_foreign_knowledge_is_refused_naming_what_differs(tmp_path):
    write_store(tmp_path / "store", [[2, 2, 2, 2, 2, 2]])
    store = KnowledgeStore(tmp_path / "store")
    for name, value in IDENTITY.items():
        with pytest.raises(ArtifactError, match=f"made with {name} {value!r}, but now it is 'new'"):
            store.check({**IDENTITY, name: "new"}, QUESTIONS)
    with pytest.raises(ArtifactError, match="6 examples, expected 5"):
        store.check(IDENTITY, QUESTIONS[:5])
    swapped = [QUESTIONS[1], QUESTIONS[0], *QUESTIONS[2:]]
    with pytest.raises(ArtifactError, match="another example than 1"):
        store.check(IDENTITY, swapped)


def test_right_candidates_are_found_by_id():
    knowledge = Knowledge(
        top_ids=torch.tensor([[3, 9], [4, 2]]),
        top_logprobs=torch.tensor([[0.6, 0.4], [0.7, 0.1]]).log(),
        log_tail_mass=torch.tensor([0.0, 0.2]).log(),
        gold_logprob=torch.tensor([0.4, 0.05]).log(),
        tail_bends=torch.empty(2, 0),
        vocabulary_size=10,
    )
    assert knowledge.is_right(torch.tensor([9, 5])).tolist() == [[False, True], [False, False]]
