"""What the kinds of divergences have in common; test_kinds.py has the dense references."""

import pytest
import torch

from firstkd.terms.divergence import FORWARD, JensenShannon, Reverse, Skew
from firstkd.terms.divergences import choice_kl

KINDS = [FORWARD, Reverse(kind="reverse"), JensenShannon(kind="jsd"), Skew(kind="skew")]
SCORES = torch.tensor([[-1.0, -2.0, -0.5]])


@pytest.mark.parametrize("divergence", KINDS, ids=lambda found: found.kind)
def test_a_divergence_is_0_only_of_the_target_itself(divergence):
    assert choice_kl(SCORES.softmax(-1), SCORES, divergence).item() == pytest.approx(0, abs=1e-6)
    assert choice_kl(torch.tensor([[0.1, 0.2, 0.7]]), SCORES, divergence).item() > 1e-3


@pytest.mark.parametrize("divergence", KINDS, ids=lambda found: found.kind)
@pytest.mark.parametrize("target", [[0.1, 0.2, 0.7], [0.0, 0.0, 1.0]])
def test_a_choice_that_does_not_exist_changes_nothing(divergence, target):
    found = {}
    for absent in (0, 2):
        scores = SCORES.clone().requires_grad_()
        padded = torch.cat([scores, torch.full((1, absent), -torch.inf)], -1)
        value = choice_kl(torch.tensor([target + [0.0] * absent]), padded, divergence).sum()
        found[absent] = value.detach(), *torch.autograd.grad(value, scores)
        assert all(tensor.isfinite().all() for tensor in found[absent])
    for alone, padded in zip(found[0], found[2], strict=True):
        torch.testing.assert_close(alone, padded)


def test_a_tempered_gradient_keeps_its_size():
    """Of nearly equal scores it is T² · (softmax(s / T) − q) / T, hardly another at any T."""
    logits = torch.tensor([[0.02, -0.01, -0.01]])
    sizes = []
    for temperature in (1.0, 10.0):
        scores = torch.zeros(1, 3, requires_grad=True)
        target = (logits / temperature).softmax(-1)
        choice_kl(target, scores, temperature=temperature).sum().backward()
        sizes.append(scores.grad.norm().item())
    assert sizes[1] == pytest.approx(sizes[0], rel=0.02)
