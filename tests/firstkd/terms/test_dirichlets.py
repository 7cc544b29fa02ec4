"""Dirichlet distributions at their edges; test_kinds.py has the dense references."""

import pytest
import torch

from firstkd.terms.dirichlets import SMOOTHING, negative_log_likelihood, proxy_divergence

LOSSES = [proxy_divergence, negative_log_likelihood]
OFFSET = 4.0
EXISTS = torch.tensor([[True, True, True]])
MEMBERS = torch.tensor([[[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.5, 0.3, 0.2]]])


def loss_and_slope(loss, scores, members=MEMBERS, exists=EXISTS):
    scores = torch.tensor(scores).requires_grad_()
    found = loss(scores, members, exists, OFFSET).sum()
    return found.detach(), *torch.autograd.grad(found, scores)


def learned(loss, members):
    scores = torch.tensor([[-2.0, -2.0, -2.0]], requires_grad=True)
    optimizer = torch.optim.Adam([scores], lr=0.05)
    for _ in range(1500):
        optimizer.zero_grad()
        loss(scores.clamp_max(0), members, EXISTS, OFFSET).sum().backward()
        optimizer.step()
    return scores.detach().clamp_max(0)


def test_the_divergence_from_the_proxy_is_least_at_the_mean_of_the_members():
    scores = learned(proxy_divergence, MEMBERS)
    wanted = MEMBERS.mean(1).lerp(torch.full((1, 3), 1 / 3), SMOOTHING)
    torch.testing.assert_close(scores.softmax(-1), wanted, rtol=0, atol=1e-3)
    assert proxy_divergence(scores, MEMBERS, EXISTS, OFFSET).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_the_level_of_the_scores_says_how_much_members_agree(loss):
    close = MEMBERS.lerp(MEMBERS.mean(1, keepdim=True).expand_as(MEMBERS), 0.8)
    assert learned(loss, close).logsumexp(-1) > learned(loss, MEMBERS).logsumexp(-1) + 0.5


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("members", [[[1.0, 0, 0]] * 2, [[1.0, 0, 0], [0, 1.0, 0]]])
def test_members_that_agree_or_are_certain_have_a_finite_loss(loss, members):
    for found in loss_and_slope(loss, [[-1.0, -2.0, -30.0]], torch.tensor([members])):
        assert found.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_a_choice_that_does_not_exist_changes_nothing(loss):
    value, slope = loss_and_slope(loss, [[-1.0, -2.0, -3.0]])
    members = torch.cat([MEMBERS, torch.zeros(1, 3, 1)], -1)
    exists = torch.tensor([[True, True, True, False]])
    padded = loss_and_slope(loss, [[-1.0, -2.0, -3.0, -torch.inf]], members, exists)
    torch.testing.assert_close(padded[0], value)
    torch.testing.assert_close(padded[1], torch.cat([slope, torch.zeros(1, 1)], -1))


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_the_order_of_members_does_not_matter(loss):
    scores = torch.tensor([[-1.0, -2.0, -3.0]])
    torch.testing.assert_close(
        loss(scores, MEMBERS[:, [2, 0, 1]], EXISTS, OFFSET), loss(scores, MEMBERS, EXISTS, OFFSET)
    )
