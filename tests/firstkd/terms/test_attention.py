"""Which layers the term `attention` compares, and of which models; test_kinds.py has the loss."""

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from firstkd.data.packing import pack
from firstkd.data.prompts import Question
from firstkd.errors import ArtifactError, ConfigError
from firstkd.models.folders import load_model
from firstkd.models.needs import Projection
from firstkd.models.scoring import ResponseScorer
from firstkd.models.view import View
from firstkd.signals.target import States
from firstkd.terms.attention import Attention
from firstkd.terms.base import Pairing

WIDTHS = (32, 48)
QUESTIONS = [
    Question("a", [5, 6, 7], [[8], [9, 10], [11, 12, 13]], 1),
    Question("open", [4, 9], [[21, 22, 2]], 0),
    Question("unlabelled", [4, 9, 5, 5], [], None),
]


def attention(**settings):
    return Attention.model_validate({"kind": "attention", "from": "states", **settings})


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("last", [(3, 5)]),
        ("uniform", [(0, 1), (1, 2), (2, 4), (3, 5)]),
        ("kept", [(0, 0), (1, 2), (2, 3), (3, 5)]),
        ([[0, 0], [3, 5]], [(0, 0), (3, 5)]),
    ],
)
def test_the_map_of_layers(layers, expected):
    pairs = attention(layers=layers).pairs(Pairing((4, 6), WIDTHS, [0, 2, 3, 5]), "")
    assert pairs == [
        (Projection(ours, of), Projection(theirs, of)) for ours, theirs in expected for of in "qkv"
    ]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([[1, 6]], r"k.layers: there is no pair \[1, 6\]; .* to 3, the other's to 5"),
        ([[4, 1]], r"k.layers: there is no pair \[4, 1\]"),
        ("kept", r"k.layers: kept, but the student"),
    ],
)
def test_layers_that_do_not_exist_are_named(layers, message):
    with pytest.raises(ConfigError, match=message):
        attention(layers=layers).pairs(Pairing((4, 6), WIDTHS, None), "k")


def test_heads_that_divide_no_projection_are_refused(tiny_model):
    model = load_model(tiny_model, "fp32")  # queries of 32 numbers, keys and values of 16
    attention(heads=16).check_model(model)
    with pytest.raises(
        ConfigError, match=r"heads: the 16 numbers of k_proj .* 32 heads .*; set a div"
    ):
        attention(heads=32).check_model(model)


def test_a_family_whose_projections_are_one_module_is_refused():
    config = GPTNeoXConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    with pytest.raises(ArtifactError, match="GPTNeoXLayer has 0 q_proj modules instead of one"):
        attention().check_model(GPTNeoXForCausalLM(config))


def test_the_loss_is_the_same_with_and_without_packing(tiny_model):
    """And the same for a question alone as beside longer ones, so that padding counts nothing."""
    term, found = attention(), {}
    pairs = term.pairs(Pairing((2, 2), (32, 32), None), "")
    places = [ours for ours, _ in pairs]
    scorer = ResponseScorer(load_model(tiny_model, "fp32")).eval()

    def loss(index):
        batch = pack(QUESTIONS, index)
        view = View(scorer, batch, places=places)
        noise = torch.Generator().manual_seed(0)
        wanted = {of: torch.randn(50, 48, generator=noise) for _, of in places}
        at = batch.input_ids_BL[batch.is_token_BL]  # another state for each token of the vocabulary
        target = States([(place, wanted[place.of][at]) for place in places])
        return term(view, "term", target).total.item()

    for scorer.can_pack in (True, False):
        found[scorer.can_pack] = loss([0, 1, 2])
        assert sum(loss([i]) for i in range(3)) == pytest.approx(found[scorer.can_pack], rel=1e-5)
    assert found[True] == pytest.approx(found[False], rel=1e-5) and found[True] > 0.1
