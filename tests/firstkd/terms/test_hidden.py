"""Which hidden states the term `hidden` compares; test_kinds.py has the distances."""

import pytest
import torch

from firstkd.data.packing import pack
from firstkd.data.prompts import Question
from firstkd.errors import ConfigError
from firstkd.models.folders import load_model
from firstkd.models.scoring import ResponseScorer
from firstkd.terms.base import Pairing
from firstkd.terms.hidden import Hidden

SAME = (32, 32)


def hidden(**settings):
    return Hidden.model_validate({"kind": "hidden", "from": "states", **settings})


def test_widths_that_differ_are_refused_without_a_projector():
    message = r"k.projector: false, but the hidden states have 32 and 48 numbers"
    with pytest.raises(ConfigError, match=message):
        hidden(projector=False).pairs(Pairing((4, 6), (32, 48), None), "k")


def test_equal_widths_need_no_projector():
    assert len(hidden().modules(3, SAME)) == 0
    shapes = [module.weight.shape for module in hidden().modules(2, (32, 48))]
    assert shapes == [(48, 32)] * 2


def test_states_are_the_same_with_and_without_packing(tiny_model):
    questions = [
        Question("a", [5, 6, 7], [[8], [9, 10], [11, 12, 13]], 1),
        Question("open", [4, 9], [[21, 22, 2]], 0),
        Question("unlabelled", [4, 9, 5, 5], [], None),
    ]
    scorer, batch = ResponseScorer(load_model(tiny_model, "fp32")).eval(), pack(questions, range(3))
    found = {}
    for scorer.can_pack in (True, False):
        found[scorer.can_pack] = scorer.states(batch, [0, 1, 2]).at_places
    for place in range(3):
        assert len(found[True][place]) == batch.tokens
        torch.testing.assert_close(found[True][place], found[False][place], rtol=1e-4, atol=1e-5)
