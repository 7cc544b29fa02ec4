"""A discriminator against the student; test_kinds.py has the dense reference."""

import math

import pytest
import torch

from firstkd.terms.discriminator import Discriminator, reversed_gradient, told_apart

QUESTION_T = torch.tensor([0, 0, 1, 1, 1, 2])
QUESTIONS = 3


def states(seed, width=6):
    return torch.randn(6, width, generator=torch.Generator().manual_seed(seed))


def test_what_cannot_be_told_apart_costs_log_2_and_what_can_less():
    unsure = torch.zeros(2)
    torch.testing.assert_close(told_apart(unsure, unsure), torch.full((2,), math.log(2)))
    assert (told_apart(-torch.ones(2), torch.ones(2)) < math.log(2)).all()
    assert (told_apart(torch.ones(2), -torch.ones(2)) > math.log(2)).all()


def test_the_gradient_is_reversed_and_the_value_is_not():
    values = torch.tensor([1.0, -2.0], requires_grad=True)
    same = reversed_gradient(values)
    assert torch.equal(same, values)
    same.sum().backward()
    assert torch.equal(values.grad, -torch.ones(2))


@pytest.mark.parametrize("width", [6, 4])
def test_the_discriminator_learns_to_tell_and_the_student_not_to_be_told(width):
    torch.manual_seed(0)
    discriminator = Discriminator(width, 6, units=16)
    student, teacher = states(1, width).requires_grad_(), states(2)

    def loss():
        ours = discriminator.of_student(student, QUESTION_T, QUESTIONS)
        return told_apart(ours, discriminator(teacher, QUESTION_T, QUESTIONS)).mean()

    optimizer = torch.optim.AdamW(discriminator.score.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    told = loss().item()
    assert told < 0.3
    moves = [student, *discriminator.projector.parameters()]
    optimizer = torch.optim.AdamW(moves, lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() > 2 * told


def test_the_size_of_states_tells_nothing():
    torch.manual_seed(0)
    discriminator = Discriminator(6, 6, units=16)
    scores = [discriminator(size * states(1), QUESTION_T, QUESTIONS) for size in (1, 1000)]
    torch.testing.assert_close(*scores)
