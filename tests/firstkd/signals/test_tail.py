import numpy as np
import pytest
import torch

from firstkd.signals.knowledge import Knowledge
from firstkd.signals.tail import NODES, TEMPERATURES, bends, temper
from firstkd.signals.tokens import Tokens
from firstkd.signals.top_k import knowledge_of
from tests.firstkd.signals.stores import as_stored

VOCABULARY, K = 20_000, 5
SIGNAL = Tokens(kind="tokens", of="m", select={"kind": "top_k", "k": K}, tail_nodes=len(NODES))


def logits(kind: str) -> torch.Tensor:
    """[64, V] like a language model's: a bell of unlikely tokens, and some that stand out."""
    generator = torch.Generator().manual_seed(1)
    bell = torch.randn(64, VOCABULARY, generator=generator) * 2
    candidates = torch.rand(64, 40, generator=generator) * {"peaked": 14, "flat": 8}[kind]
    bell[:, :40] += candidates.sort(descending=True).values
    return bell


def stored(logprobs: torch.Tensor) -> Knowledge:
    """What a store gives back of the log-probabilities, which are overwritten."""
    return as_stored(knowledge_of(logprobs, K, len(NODES)), SIGNAL)


@pytest.mark.parametrize("kind", ["peaked", "flat"])
def test_tempering_agrees_with_the_dense_softmax(kind):
    dense = logits(kind).double()
    knowledge = stored(dense.log_softmax(-1).float())
    for temperature in np.geomspace(*TEMPERATURES, 25):
        probabilities = temper(knowledge, float(temperature))
        exact = (dense / temperature).softmax(-1).gather(-1, knowledge.top_ids)
        assert (probabilities - exact).abs().max() < 2e-3
        assert (probabilities.sum(-1) - exact.sum(-1)).abs().max() < 2e-3


def test_at_temperature_1_nothing_changes():
    knowledge = stored(logits("flat").log_softmax(-1))
    probabilities = temper(knowledge, 1.0)
    torch.testing.assert_close(probabilities, knowledge.top_logprobs.exp(), atol=1e-3, rtol=0)
    torch.testing.assert_close(1 - probabilities.sum(-1), knowledge.tail_mass, atol=1e-3, rtol=0)


def test_without_nodes_there_are_no_bends():
    assert bends(torch.zeros(3, 10), torch.zeros(3), K, 0).shape == (3, 0)
