import json
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstkd.data.examples import Example, example_key
from firstkd.errors import ArtifactError, ConfigError
from firstkd.signals.columns import Column
from firstkd.signals.knowledge import Knowledge
from firstkd.signals.store import (
    MANIFEST,
    Records,
    SignalStore,
    write_manifest,
    write_shard,
)
from firstkd.signals.tokens import Tokens
from firstkd.signals.top_k import packed
from tests.firstkd.signals.stores import as_stored

IDENTITY = {"model_sha256": "a" * 64, "precision": "bf16"}
RAGGED = {"number": Column(torch.float32), "pair": Column(torch.int32, 2)}


def example(number: int) -> Example:
    return Example(f"made/{number}", f"Where is {number}?", "here", ("here", "there"), 0, "made")


def tokens(k: int = 5, tail_nodes: int = 0) -> Tokens:
    return Tokens(kind="tokens", of="m", select={"kind": "top_k", "k": k}, tail_nodes=tail_nodes)


def write_ragged(folder, counts_by_shard) -> Records:
    """Write a store in which each record is its own number; return what went in."""
    folder.mkdir()
    written, rows, keys = [], 0, iter(range(1000))
    for number, counts in enumerate(counts_by_shard):
        values = torch.arange(rows, rows + sum(counts), dtype=torch.float32)
        rows += sum(counts)
        columns = {"number": values, "pair": torch.stack([values, -values], -1).int()}
        written.append(Records(columns, torch.tensor(counts, dtype=torch.int64)))
        names = [example_key(example(next(keys))) for _ in counts]
        write_shard(folder, number, RAGGED, written[-1], names)
    write_manifest(folder, RAGGED, "ragged", IDENTITY)
    return Records.concatenate(written)


def same(found: Records, expected: Records) -> None:
    assert found.counts.tolist() == expected.counts.tolist()
    assert found.columns.keys() == expected.columns.keys()
    for name, column in expected.columns.items():
        assert torch.equal(found.columns[name], column), name


COUNTS = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), min_size=1, max_size=3)


@given(counts=COUNTS, data=st.data())
@settings(max_examples=40, deadline=None)
def test_records_come_back_for_any_examples_in_any_order(tmp_path_factory, counts, data):
    folder = tmp_path_factory.mktemp("stores") / "store"
    written = write_ragged(folder, counts)
    store = SignalStore(folder)
    same(store.whole(), written)
    flat = list(chain.from_iterable(counts))
    asked = data.draw(st.lists(st.integers(0, len(flat) - 1), min_size=1, max_size=6))
    found = store.of_examples(torch.tensor(asked))
    starts = [sum(flat[:i]) for i in range(len(flat))]
    expected = [float(starts[i] + n) for i in asked for n in range(flat[i])]
    assert found.columns["number"].tolist() == expected
    assert found.columns["pair"].tolist() == [[n, -n] for n in expected]
    assert found.example_R.tolist() == [p for p, i in enumerate(asked) for _ in range(flat[i])]
    same(written.reordered(torch.tensor(asked)), found)


def random_knowledge(records: int, signal: Tokens, vocabulary_size: int) -> Knowledge:
    generator = torch.Generator().manual_seed(records)
    k = signal.select.k
    logprobs = torch.randn(records, k + 2, generator=generator).log_softmax(-1)
    return Knowledge(
        top_ids=torch.randint(vocabulary_size, (records, k), generator=generator),
        top_logprobs=logprobs[:, :k],
        log_tail_mass=logprobs[:, k:].logsumexp(-1),
        gold_logprob=logprobs[:, 0].clone(),
        tail_bends=torch.randn(records, signal.tail_nodes, generator=generator),
        vocabulary_size=vocabulary_size,
    )


@pytest.mark.parametrize(
    ("signal", "vocabulary_size"),
    [
        (tokens(), 400),
        (tokens(tail_nodes=8), 49_152),
        (tokens(), 65_536),
        (tokens(), 151_936),
        (tokens(k=4, tail_nodes=8), 2**20),
        (tokens(k=1), 70_000),
    ],
)
def test_token_decisions_are_read_back_by_example(tmp_path, signal, vocabulary_size):
    counts = torch.tensor([1, 0, 3, 2])
    written = random_knowledge(6, signal, vocabulary_size)
    layout = signal.layout(vocabulary_size)
    write_shard(tmp_path, 0, layout, packed(written, counts), range(4))
    write_manifest(tmp_path, layout, "tokens", IDENTITY, **signal.facts(vocabulary_size))
    store = SignalStore(tmp_path)
    found = signal.decisions(store.of_examples(torch.tensor([3, 1, 0])), store.facts)
    rows = torch.tensor([4, 5, 0])
    assert torch.equal(found.top_ids, written.top_ids[rows])
    assert found.vocabulary_size == vocabulary_size
    for name in ("top_logprobs", "log_tail_mass", "gold_logprob", "tail_bends"):
        expected = getattr(written, name)[rows]
        torch.testing.assert_close(getattr(found, name), expected, atol=1e-6, rtol=2**-11)


@given(st.lists(st.integers(0, 2**20 - 1), min_size=1, max_size=9))
def test_wide_ids_survive_their_split_into_16_and_4_bits(ids):
    signal = tokens(k=len(ids))
    knowledge = random_knowledge(1, signal, 2**20)
    object.__setattr__(knowledge, "top_ids", torch.tensor([ids]))
    assert as_stored(knowledge, signal).top_ids.tolist() == [ids]


@pytest.mark.parametrize(
    ("vocabulary_size", "tail_nodes", "size"),
    [(65_536, 0, 24), (151_936, 0, 27), (65_536, 8, 40), (151_936, 8, 43)],
)
def test_bytes_of_a_token_at_k_5(vocabulary_size, tail_nodes, size):
    layout = tokens(tail_nodes=tail_nodes).layout(vocabulary_size)
    assert sum(column.dtype.itemsize * (column.width or 1) for column in layout.values()) == size


def test_what_the_format_cannot_hold_is_refused():
    with pytest.raises(ConfigError, match=r"1,048,577 tokens, but at most 1,048,576 can"):
        tokens().layout(2**20 + 1)
    with pytest.raises(ConfigError, match=r"select.k: 5 of a vocabulary of 5 .* lower it"):
        tokens().layout(5)


def test_examples_are_found_by_their_content_in_whatever_order(tmp_path):
    write_ragged(tmp_path / "store", [[1, 2], [0, 3]])
    store = SignalStore(tmp_path / "store")
    wanted = [example(3), example(0), example(2)]
    keys, ids = [example_key(e) for e in wanted], [e.id for e in wanted]
    positions = store.positions(keys, ids)
    assert positions.tolist() == [3, 0, 2]
    assert store.of_examples(positions).columns["number"].tolist() == [3, 4, 5, 0]
    store.check_counts(positions, [3, 1, 0], ids)
    with pytest.raises(ArtifactError, match="has 1 records for example made/0, not 2: "):
        store.check_counts(positions, [3, 2, 1], ids)
    stranger = example(77)
    with pytest.raises(ArtifactError, match=r"lacks 1 examples, including made/77; .*"):
        store.positions([*keys, example_key(stranger)], [*ids, stranger.id])


def test_a_key_is_of_the_content_alone():
    one = example(1)
    moved = Example("other/9", one.prompt, one.response, one.choices, 0, "other", "train")
    assert example_key(moved) == example_key(one)
    reworded = Example(one.id, one.prompt + " ", one.response, one.choices, 0, "made")
    fewer = Example(one.id, one.prompt, one.response, ("here",), 0, "made")
    assert len({example_key(e) for e in (one, reworded, fewer)}) == 3


def test_a_column_that_is_missing_or_incomplete_is_required_in_vain(tmp_path):
    signal, counts = tokens(), torch.tensor([2])
    written = random_knowledge(2, signal, 400)
    written.gold_logprob[1] = torch.nan
    write_shard(tmp_path, 0, signal.layout(400), packed(written, counts), [1])
    write_manifest(tmp_path, signal.layout(400), "tokens", {}, **signal.facts(400))
    store = SignalStore(tmp_path)
    store.require("top_logprobs")
    for column in ("gold_logprob", "tail_bends"):
        with pytest.raises(ArtifactError, match=f"{tmp_path} lacks {column}, which is needed"):
            store.require(column)


def test_a_flipped_byte_is_found_on_opening(tmp_path):
    write_ragged(tmp_path / "store", [[2, 2]])
    shard = tmp_path / "store/00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"00000\.safetensors is damaged: sha256 .* rerun the"):
        SignalStore(tmp_path / "store")


@pytest.mark.parametrize("length", [0, 7, 100])
def test_a_truncated_shard_is_found_on_opening(tmp_path, length):
    write_ragged(tmp_path / "store", [[2, 2]])
    shard = tmp_path / "store/00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:length])
    with pytest.raises(ArtifactError, match=r"00000\.safetensors is damaged"):
        SignalStore(tmp_path / "store")


def test_a_missing_shard_and_a_missing_manifest_are_named(tmp_path):
    write_ragged(tmp_path / "store", [[2], [2]])
    (tmp_path / "store/00001.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"00001\.safetensors is missing; rerun the stage"):
        SignalStore(tmp_path / "store")
    (tmp_path / "store" / MANIFEST).unlink()
    with pytest.raises(ArtifactError, match=r"manifest\.json is missing"):
        SignalStore(tmp_path / "store")


@pytest.mark.parametrize("version", [2, 99])
def test_a_store_of_another_format_is_refused(tmp_path, version):
    write_ragged(tmp_path / "store", [[2]])
    manifest = json.loads((tmp_path / "store" / MANIFEST).read_text())
    (tmp_path / "store" / MANIFEST).write_text(json.dumps({**manifest, "format_version": version}))
    with pytest.raises(ArtifactError, match=f"signal format {version}, but .* reads 3; rebuild it"):
        SignalStore(tmp_path / "store")


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
