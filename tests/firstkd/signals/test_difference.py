"""Which examples difference sampling keeps."""

import pytest
import torch

from firstkd.data.examples import Example, example_key
from firstkd.errors import ArtifactError
from firstkd.signals.difference import Difference
from firstkd.signals.knowledge import Knowledge
from firstkd.signals.store import Records, SignalStore, write_manifest, write_shard
from tests.firstkd.signals.stores import TOKENS, packed

KEEP = Difference.model_validate({"of": "large", "less": "small", "share": 0.5})
WORDS = ["yes", "no", "it is in a den", "seven", "perhaps"]
EXAMPLES = [
    *(Example(f"a/{i}", f"Which {i}?", word, None, None, "a") for i, word in enumerate(WORDS)),
    Example("a/open", "What?", "", None, None, "a"),
]


def store(folder, logprobs):
    """A store of tokens whose right tokens have these log-probabilities, by example."""
    flat = torch.tensor([value for each in logprobs for value in each])
    knowledge = Knowledge(
        top_ids=torch.zeros(len(flat), 5, dtype=torch.int64),
        top_logprobs=torch.full((len(flat), 5), -2.0),
        log_tail_mass=torch.full((len(flat),), -1.0),
        gold_logprob=flat,
        tail_bends=torch.empty(len(flat), 0),
        vocabulary_size=400,
    )
    records = packed(knowledge, torch.tensor([len(each) for each in logprobs]))
    layout = TOKENS.layout(400)
    columns = {name: records.columns[name].to(column.dtype) for name, column in layout.items()}
    folder.mkdir()
    write_shard(folder, 0, layout, Records(columns, records.counts), [*map(example_key, EXAMPLES)])
    write_manifest(folder, layout, "tokens", {}, vocabulary_size=400)
    return SignalStore(folder)


LARGE = [[-1.0, -0.5], [-0.1], [-1.0, -1.0, -1.0], [-6.0], [-2.0, -1.0], []]
SMALL = [[-5.0, -0.5], [-0.1], [-8.0, -4.0], [-5.0], [-2.0, -1.5], []]
# differences per character: 4/3, 0, 9/14, −1/5, 1/14


def test_it_keeps_the_largest_differences_in_order_and_what_nobody_has_answered(tmp_path):
    large, small = store(tmp_path / "large", LARGE), store(tmp_path / "small", SMALL)
    kept = [example.id for example in KEEP.kept(EXAMPLES, large, small)]
    assert kept == ["a/0", "a/2", "a/4", "a/open"]
    turned = [example.id for example in KEEP.kept(EXAMPLES, small, large)]
    assert turned == ["a/1", "a/3", "a/4", "a/open"]  # a flipped sign keeps the noise


def test_the_examples_may_be_fewer_and_in_another_order(tmp_path):
    large, small = store(tmp_path / "large", LARGE), store(tmp_path / "small", SMALL)
    some = [EXAMPLES[i] for i in (3, 2, 0)]
    assert [example.id for example in KEEP.kept(some, large, small)] == ["a/2", "a/0"]


def test_what_a_store_does_not_know_is_one_line(tmp_path):
    unknown = store(tmp_path / "large", [[float("nan")], *LARGE[1:]])
    with pytest.raises(ArtifactError, match="lacks gold_logprob"):
        KEEP.kept(EXAMPLES, unknown, unknown)
