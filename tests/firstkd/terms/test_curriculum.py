"""A temperature that is learned against the student; test_kinds.py has the dense reference."""

import pytest
import torch
from pydantic import ValidationError

from firstkd.terms.curriculum import AdverseTemperature, reach, tempered_kl
from firstkd.terms.curriculum_kl import CurriculumKl

TARGET = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.5, 0.0]])
SCORES = torch.tensor([[-1.0, -0.5, -2.0], [-1.0, -3.0, -torch.inf]])
EXISTS = torch.tensor([[True, True, True], [True, True, False]])


def test_the_temperature_moves_to_where_the_student_is_worse():
    learned = AdverseTemperature(0.2, 1.0)
    optimizer = torch.optim.AdamW(learned.parameters(), lr=1e-3)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        losses.append(tempered_kl(TARGET, SCORES, EXISTS, learned(1.0)).sum())
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] > 1.1 * losses[0]
    assert 0.2 < learned(1.0).item() <= 1.0


def test_the_temperature_stays_in_the_middle_until_it_may_move():
    learned = AdverseTemperature(1.0, 5.0)
    torch.nn.init.constant_(learned.theta, 1.0)
    assert learned(0.0).item() == 3.0
    assert 3.0 < learned(0.01).item() < learned(1.0).item() == 5.0


def test_the_reach_rises_as_half_a_cosine():
    assert [reach(progress, 0.2) for progress in (0, 0.1, 0.2, 1)] == pytest.approx([0, 0.5, 1, 1])
    assert reach(0, 0) == 1


def test_a_choice_that_does_not_exist_changes_nothing_and_no_gradient_is_lost():
    temperature = torch.tensor([2.0], requires_grad=True)
    scores = SCORES.clone().requires_grad_()
    padded = tempered_kl(TARGET, scores, EXISTS, temperature)[1]
    alone = tempered_kl(TARGET[1:, :2], SCORES[1:, :2], EXISTS[1:, :2], temperature)
    torch.testing.assert_close(padded, alone[0])
    for gradient in torch.autograd.grad(padded, [scores, temperature]):
        assert gradient.isfinite().all()


def test_bounds_that_leave_no_room_are_refused():
    with pytest.raises(ValidationError, match="highest: 2 must be above lowest: 2"):
        CurriculumKl(**{"kind": "curriculum_kl", "from": "c", "lowest": 2, "highest": 2})
