"""Which tokens are kept: against loops over dense distributions, and from capture to store."""

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from firstkd.data.packing import pack
from firstkd.data.prompts import Question
from firstkd.errors import ConfigError
from firstkd.models.folders import load_model
from firstkd.models.init.server import ServerInit
from firstkd.models.settings import ModelSettings
from firstkd.signals.select import AnySelect
from firstkd.signals.sparse import cut_at, drawn, uniforms, with_own_ids
from firstkd.signals.store import SignalStore
from firstkd.signals.tokens import Tokens
from firstkd.signals.top_k import knowledge_of
from firstkd.terms.sparse_kl import SparseKl
from tests.firstkd.signals.stores import VOCABULARY, capture_into, decisions_of

QUESTIONS = [
    Question("a", [5, 6, 7], [[8], [9, 10], [11, 12, 13]], 1),
    Question("none", [5, 6], [[7], [8]], None),
    Question("open", [4, 9], [[21, 22, 2]], 0),
]
TOP_P = {"kind": "top_p", "p": 0.3, "k": 20}
SAMPLE = {"kind": "sample", "draws": 12}


def tokens(select, **settings):
    return Tokens(kind="tokens", of="m", select=select, **settings)


def logprobs(rows=40, size=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(rows, size, generator=generator, dtype=torch.float64)).log_softmax(-1)


def as_dense(knowledge):
    """The candidates' probabilities [R, V]."""
    dense = torch.zeros(len(knowledge), knowledge.vocabulary_size, dtype=torch.float64)
    return dense.scatter_add(1, knowledge.top_ids, knowledge.top_logprobs.double().exp())


@pytest.mark.parametrize("mass", [0.2, 0.9, 0.999])
def test_a_mass_is_held_by_the_fewest_most_probable_tokens(mass):
    given = logprobs()
    found = cut_at(knowledge_of(given.clone(), 8, 0), mass)
    for row, dense in enumerate(given.exp()):
        ranked = dense.sort(descending=True).values
        fewest = next((n for n in range(1, 9) if ranked[:n].sum() >= mass), 8)
        kept = found.top_logprobs[row].exp()
        torch.testing.assert_close(kept[:fewest], ranked[:fewest])
        assert (kept[fewest:] == 0).all()
        tail = found.log_tail_mass[row].exp().item()
        assert tail == pytest.approx(ranked[fewest:].sum().item(), abs=1e-12)


def test_a_token_is_drawn_as_often_as_its_probability_says_rounded_down_or_up():
    given, draws = logprobs(), 12
    uniform = torch.rand(len(given), dtype=torch.float64, generator=torch.Generator())
    found = drawn(given.clone(), draws, uniform)
    counts, expected = as_dense(found) * draws, given.exp() * draws
    assert ((counts - expected).abs() < 1 + 1e-9).all()
    torch.testing.assert_close(counts.sum(-1), torch.full((len(given),), draws).double())
    assert (found.log_tail_mass == -torch.inf).all()


def test_draws_are_unbiased():
    """Over a fine grid of what they are drawn by, their mean is the distribution."""
    (one,), steps = logprobs(rows=1), 4000
    uniform = (torch.arange(steps) + 0.5) / steps
    found = drawn(one.repeat(steps, 1), 5, uniform.double())
    torch.testing.assert_close(as_dense(found).mean(0), one.exp(), rtol=0, atol=1 / steps)


def test_what_is_drawn_follows_from_a_questions_tokens_alone():
    answered = [q.gold_only() for q in (QUESTIONS[0], QUESTIONS[2])]
    counts = torch.tensor([2, 3])
    together = uniforms(pack(answered, [0, 1]), counts)
    turned = uniforms(pack(answered, [1, 0]), counts.flip(0))
    assert torch.equal(together, torch.cat([turned[3:], turned[:3]]))
    assert len(set(together.tolist())) == 5 and ((together >= 0) & (together < 1)).all()


def test_what_is_no_candidate_gets_an_id_of_its_own():
    found = cut_at(knowledge_of(logprobs(size=16), 8, 0), 0.5)
    own = with_own_ids(found)
    exists = found.top_logprobs.isfinite()
    assert torch.equal(own.top_ids[exists], found.top_ids[exists])
    assert all(len(set(row)) == 8 for row in own.top_ids.tolist())


@pytest.mark.parametrize("select", [TOP_P, SAMPLE], ids=lambda select: select["kind"])
@pytest.mark.parametrize("vocabulary", [VOCABULARY, 70_000])
def test_a_store_holds_each_tokens_own_candidates_only(tiny_model, tmp_path, select, vocabulary):
    signal = tokens(select)
    layout = signal.layout(vocabulary)
    kept = torch.tensor([3, 0, 12, 1])
    for column in layout.values():
        if column.share:
            values = torch.arange(4 * column.width).view(4, -1).to(column.dtype)
            stored = column.to_disk(values, kept)
            assert len(stored) == sum(math.ceil(n / column.share) for n in kept.tolist())
            back = column.from_disk(stored, kept, torch.arange(4))
            assert torch.equal(column.to_disk(back, kept), stored)
            some = column.from_disk(stored, kept, torch.tensor([3, 0, 1]))
            assert torch.equal(some.view(torch.uint8), back[[3, 0, 1]].view(torch.uint8))
    store = capture_into(tmp_path / "store", signal, load_model(tiny_model, "fp32"), QUESTIONS)
    found = decisions_of(signal, store, 2, 0)
    assert store.starts.diff().tolist() == [2, 0, 3]
    assert len(found) == 5 and found.top_ids.shape[1] == signal.select.width
    as_float = as_dense(found)
    if signal.is_sampled:
        torch.testing.assert_close((12 * as_float).round(), 12 * as_float, rtol=0, atol=1e-5)
        torch.testing.assert_close(as_float.sum(-1), torch.ones(5).double())
    else:
        whole = as_float.sum(-1) + found.tail_mass
        torch.testing.assert_close(whole, torch.ones(5).double(), rtol=0, atol=2e-3)


def test_draws_are_the_same_however_capture_is_cut(tiny_model, tmp_path):
    model, signal = load_model(tiny_model, "fp32"), tokens(SAMPLE)
    capture_into(tmp_path / "whole", signal, model, QUESTIONS)
    capture_into(tmp_path / "last", signal, model, QUESTIONS[2:])
    last, whole = (SignalStore(tmp_path / name) for name in ("last", "whole"))
    assert torch.equal(
        as_dense(decisions_of(signal, last, 0)), as_dense(decisions_of(signal, whole, 2))
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recalibrate": "temperature"}, "recalibrate: temperature changes probabilities"),
        ({"recalibrate": "none", "tail": "renormalise"}, "unbiased only for tail: ghost"),
        (
            {"recalibrate": "none", "divergence": {"kind": "reverse"}},
            "unbiased only for tail: ghost",
        ),
        ({"recalibrate": "none"}, None),
    ],
)
def test_draws_teach_only_what_they_are_unbiased_for(settings, message):
    term = SparseKl.model_validate({"kind": "sparse_kl", "from": "t", **settings})
    found = term.misfit(tokens(SAMPLE))
    assert (found is None) if message is None else (message in found)
    assert not tokens(SAMPLE).is_recalibrated and tokens(TOP_P).is_recalibrated


def test_a_server_gives_no_draws():
    init = {
        "kind": "server", "url": "http://127.0.0.1:8000/v1", "model": "m", "fingerprint": "1",
        "tokenizer": "base", "ask": "texts",
    }  # fmt: skip
    models = {"m": ModelSettings(init=ServerInit.model_validate(init))}
    assert "draws from the whole distribution" in tokens(SAMPLE).check({}, models)
    assert tokens(TOP_P).check({}, models) is None
    with pytest.raises(ConfigError, match="but only the most probable tokens are available"):
        tokens(SAMPLE).select.of_positions([({5: -0.1}, 5)], 400)
    kept = tokens(TOP_P).select.of_positions([({5: -0.1, 6: -3.0}, 5)], 400)
    assert kept.top_logprobs.isfinite().sum() == 1  # which hold 0.3 already


def test_tails_of_another_size_each_have_no_nodes():
    with pytest.raises(ValidationError, match=r"tail_nodes: 8, but with select\.kind top_p"):
        tokens(TOP_P, tail_nodes=8)


@pytest.mark.parametrize(
    "select", [{"kind": "top_p", "p": 1.0}, {"kind": "sample", "draws": 0}, {"kind": "top_k"}]
)
def test_what_keeps_nothing_or_everything_is_refused(select):
    with pytest.raises(ValidationError):
        TypeAdapter(AnySelect).validate_python(select)
