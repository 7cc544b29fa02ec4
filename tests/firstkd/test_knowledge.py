import json
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstkd.errors import ArtifactError
from firstkd.knowledge import (
    MANIFEST,
    Knowledge,
    KnowledgeStore,
    example_key,
    storage_dtypes,
    write_manifest,
    write_shard,
)
from firstkd.prompts import Question

IDENTITY = {"teacher_sha256": "a" * 64, "precision": "bf16"}
QUESTIONS = [Question(str(i), [i, i + 1], [[7] * (i + 1)], 0) for i in range(6)]


def random_knowledge(records: int, top_k: int, vocabulary: int, seed: int = 0) -> Knowledge:
    generator = torch.Generator().manual_seed(seed)
    logprobs = torch.randn(records, top_k + 2, generator=generator).log_softmax(-1)
    return Knowledge(
        top_ids=torch.randint(vocabulary, (records, top_k), generator=generator),
        top_logprobs=logprobs[:, :top_k],
        tail_mass=logprobs[:, top_k:].exp().sum(-1),
        gold_logprob=logprobs[:, 0],
    )


def write_store(folder, counts_by_shard, top_k=5, vocabulary=49_152) -> Knowledge:
    """A store of QUESTIONS in order, with so many records each; returns what went in."""
    folder.mkdir()
    written, questions = [], iter(QUESTIONS)
    for number, counts in enumerate(counts_by_shard):
        part = random_knowledge(sum(counts), top_k, vocabulary, seed=number)
        keys = torch.tensor([example_key(next(questions)) for _ in counts])
        dtypes = storage_dtypes("token", vocabulary)
        write_shard(folder, number, part, keys, torch.tensor(counts, dtype=torch.int32), dtypes)
        written.append(part)
    write_manifest(folder, "token", top_k, vocabulary, IDENTITY)
    return Knowledge.concatenate(written)


@pytest.mark.parametrize("vocabulary", [400, 49_152, 151_936])
def test_what_was_written_is_read_back_by_example(tmp_path, vocabulary):
    counts = [[1, 0, 3], [2, 4], [1]]
    written = write_store(tmp_path / "store", counts, vocabulary=vocabulary)
    store = KnowledgeStore(tmp_path / "store")
    store.check(IDENTITY, QUESTIONS)
    starts = [0, 1, 1, 4, 6, 10]
    for example, count in enumerate(chain.from_iterable(counts)):
        found = store.of_examples(torch.tensor([example]))
        rows = slice(starts[example], starts[example] + count)
        torch.testing.assert_close(found.top_ids, written.top_ids[rows])
        torch.testing.assert_close(
            found.top_logprobs, written.top_logprobs[rows], atol=3e-3, rtol=1e-3
        )
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


def test_a_record_takes_24_bytes_at_k_5():
    fields = random_knowledge(1, 5, 49_152)
    dtypes = storage_dtypes("token", 49_152)
    stored = {name: getattr(fields, name).to(dtype) for name, dtype in dtypes.items()}
    assert sum(tensor.nbytes for tensor in stored.values()) == 24


def test_a_flipped_byte_is_found_on_opening(tmp_path):
    write_store(tmp_path / "store", [[2, 2]])
    shard = tmp_path / "store/00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
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
    with pytest.raises(ArtifactError, match="made with precision 'bf16', but now it is 'fp32'"):
        store.check({**IDENTITY, "precision": "fp32"}, QUESTIONS)
    with pytest.raises(ArtifactError, match="6 examples, expected 5"):
        store.check(IDENTITY, QUESTIONS[:5])
    swapped = [QUESTIONS[1], QUESTIONS[0], *QUESTIONS[2:]]
    with pytest.raises(ArtifactError, match="another example than 1"):
        store.check(IDENTITY, swapped)


def test_right_candidates_are_found_by_id():
    knowledge = Knowledge(
        top_ids=torch.tensor([[3, 9], [4, 2]]),
        top_logprobs=torch.tensor([[0.6, 0.4], [0.7, 0.1]]).log(),
        tail_mass=torch.tensor([0.0, 0.2]),
        gold_logprob=torch.tensor([0.4, 0.05]).log(),
    )
    assert knowledge.is_right(torch.tensor([9, 5])).tolist() == [[False, True], [False, False]]
