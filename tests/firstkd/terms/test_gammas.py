"""γ of an adaptive focal loss, against the paper's rules written out one question at a time."""

import json
import math

import pytest
import torch

from firstkd.terms.gammas import Gammas, focal, following


def scores_like(confidences, right):
    """Scores [E, 3] whose first choice has the given probability, and which one is right."""
    rest = [(1 - p) / 2 for p in confidences]
    found = torch.tensor([confidences, rest, rest], dtype=torch.float64).T.log() - 3.0
    return found, torch.tensor(right)


def reference(gammas, pairs, bins):
    """The next γ of each bin of (confidence, correct), in bins of equally many."""
    pairs, found = sorted(pairs), []
    size, more = divmod(len(pairs), bins)
    for number, gamma in enumerate(gammas):
        bin_, pairs = pairs[: size + (number < more)], pairs[size + (number < more) :]
        gap = sum(p for p, _ in bin_) / len(bin_) - sum(c for _, c in bin_) / len(bin_)
        if gamma > 0:
            gamma = gamma * math.exp(gap)
            gamma = min(gamma, 20) if gamma >= 0.2 else -0.2
        else:
            gamma = gamma * math.exp(-gap)
            gamma = max(gamma, -2) if abs(gamma) >= 0.2 else 0.2
        found.append(gamma)
    return found


def test_gammas_follow_the_gap_of_their_bin():
    confidences = [0.4 + 0.5 * i / 10 for i in range(11)]
    right = [0, 1, 0, 0, 0, 1, 1, 2, 0, 1, 2]
    scores, right_E = scores_like(confidences, right)
    pairs = [(p, float(choice == 0)) for p, choice in zip(confidences, right, strict=True)]
    found, expected = Gammas(rounds=3, bins=4), [1.0] * 4
    order = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    for _ in range(40):  # long enough for every bound
        found.adapt(scores[order], right_E[order])
        expected = reference(expected, pairs, 4)
        assert found.gammas == pytest.approx(expected, abs=1e-9)
    assert max(expected) == 20 and min(expected) == -2
    assert found.edges == pytest.approx([confidences[3], confidences[6], confidences[9]])


def test_a_gamma_that_falls_too_low_changes_sign_and_comes_back():
    gamma, seen = 0.25, []
    for gap in (-0.3, -0.3, 0.1, 0.3, 0.5, 0.5):
        gamma = following(gamma, gap)
        seen.append(gamma)
    falling = -0.2 * math.exp(0.3)
    assert seen == pytest.approx(
        [-0.2, falling, falling * math.exp(-0.1), 0.2, 0.2 * math.exp(0.5), 0.2 * math.exp(1)]
    )


def test_before_the_first_round_it_is_one():
    assert Gammas(rounds=3, bins=15)(torch.tensor([0.1, 0.9])).tolist() == [1.0, 1.0]


def test_few_questions_make_few_bins_and_the_edges_belong_to_the_upper_one():
    found = Gammas(rounds=3, bins=15)
    found.adapt(*scores_like([0.5, 0.9], [0, 1]))
    low, high = found.gammas
    assert low == pytest.approx(math.exp(-0.5)) and high == pytest.approx(math.exp(0.9))
    at = found(torch.tensor([0.01, 0.89, found.edges[0], 1.0], dtype=torch.float64))
    assert at.tolist() == [low, low, high, high]


def test_the_state_survives_json():
    found, again = Gammas(rounds=3, bins=3), Gammas(rounds=3, bins=3)
    found.adapt(*scores_like([0.5, 0.7, 0.9], [0, 1, 0]))
    again.restore(json.loads(json.dumps(found.state())))
    assert (again.gammas, again.edges) == (found.gammas, found.edges)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_of_what_is_certain_or_hopeless_has_a_finite_slope(dtype):
    right = torch.tensor([0.0, -1e-9, -80.0] * 2, dtype=dtype, requires_grad=True)
    losses = focal(right, right.new_tensor([0.3] * 3 + [-2.0] * 3))
    losses.sum().backward()
    assert losses.isfinite().all() and right.grad.isfinite().all()
