"""What the losses of a right answer have in common; test_kinds.py has the dense references."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from firstkd.terms.gold_loss import CROSS_ENTROPY, AnyGoldLoss

KINDS = [{"kind": "cross_entropy"}, {"kind": "focal", "gamma": 0.5}, {"kind": "flsd"}]


def made(settings):
    return TypeAdapter(AnyGoldLoss).validate_python(settings)


def losses_and_slopes(settings, probabilities, dtype=torch.float64):
    right = torch.tensor(probabilities, dtype=dtype).log().requires_grad_()
    found = made(settings)(right, None)
    return found.detach(), *torch.autograd.grad(found.sum(), right)


@pytest.mark.parametrize("settings", KINDS, ids=lambda settings: settings["kind"])
def test_an_answer_that_is_certain_costs_nothing_and_has_a_finite_slope(settings):
    for dtype in (torch.float32, torch.float64):
        found, slopes = losses_and_slopes(settings, [1.0], dtype)
        assert found.item() == 0 and slopes.isfinite().all()


def test_a_sample_dependent_loss_is_steeper_below_a_fifth():
    below, above = 0.19, 0.21
    found, _ = losses_and_slopes({"kind": "flsd"}, [below, above])
    for p, gamma, loss in zip((below, above), (5, 3), found, strict=True):
        expected, _ = losses_and_slopes({"kind": "focal", "gamma": gamma}, [p])
        assert loss.item() == pytest.approx(expected.item())


def test_focal_loss_pulls_less_on_what_is_already_right():
    plain, focal = (
        losses_and_slopes(settings, [0.1, 0.95])[1].abs()
        for settings in (KINDS[0], {"kind": "focal", "gamma": 3})
    )
    assert focal[1] < 0.02 * plain[1] and focal[0] > 0.5 * plain[0]


def test_smoothing_is_least_at_the_smoothed_distribution():
    loss = made({"kind": "label_smoothing", "epsilon": 0.2})
    smoothed = torch.tensor([0.8 + 0.05, 0.05, 0.05, 0.05], dtype=torch.float64)
    logits = smoothed.log().requires_grad_()
    logprobs = logits.log_softmax(-1)
    (slope,) = torch.autograd.grad(loss(logprobs[0], logprobs.mean()), logits)
    torch.testing.assert_close(slope, torch.zeros(4, dtype=torch.float64))


def test_the_mean_is_asked_for_only_where_it_is_used():
    assert made({"kind": "label_smoothing"}).asks_mean
    assert not any(made(settings).asks_mean for settings in KINDS)
    assert made(KINDS[0]) == CROSS_ENTROPY


@pytest.mark.parametrize(
    "settings",
    [{"kind": "focal", "gamma": 0}, {"kind": "label_smoothing", "epsilon": 1}, {"kind": "flsd_53"}],
)
def test_what_is_no_loss_is_refused(settings):
    with pytest.raises(ValidationError):
        made(settings)
