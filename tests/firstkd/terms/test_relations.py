"""Relations of questions at their edges; test_kinds.py has the dense references."""

import pytest
import torch

from firstkd.terms.relations import FORMS, distance, pooled, relation_loss

DUPLICATES = torch.tensor([0, 1, 2, 0])
"""The last question is the first one again."""


def vectors(questions, width, seed):
    return torch.randn(questions, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("form", FORMS)
def test_duplicates_have_distance_0_and_a_finite_gradient(form):
    found = vectors(3, 8, seed=0)[DUPLICATES].requires_grad_()
    wanted = vectors(3, 6, seed=1)[DUPLICATES]
    relation_loss(form, found, wanted).backward()
    assert found.grad.isfinite().all() and found.grad.abs().max() < 100
    assert distance(found)[0, 3] == 0


def test_which_way_rounding_points_is_no_angle():
    found, wanted = vectors(3, 8, seed=0)[DUPLICATES], vectors(3, 8, seed=1)[DUPLICATES]
    exact = relation_loss("angle", found, wanted)
    moved = relation_loss("angle", found + 1e-6 * vectors(4, 8, seed=2), wanted)
    torch.testing.assert_close(moved, exact, rtol=1e-4, atol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("questions", [1, 2, 3])
def test_few_questions_have_a_finite_loss_and_one_alone_none(form, questions):
    found = vectors(questions, 8, seed=0).requires_grad_()
    loss = relation_loss(form, found, vectors(questions, 6, seed=1))
    loss.backward()
    assert loss.isfinite() and found.grad.isfinite().all()
    assert questions > 1 or loss.abs() < 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_questions_that_are_all_the_same_have_a_finite_gradient(form):
    found = torch.ones(3, 8, requires_grad=True)
    relation_loss(form, found, vectors(3, 6, seed=1)).backward()
    assert found.grad.isfinite().all()


@pytest.mark.parametrize("form", ["distance", "angle"])
def test_scale_and_shift_are_no_relations(form):
    wanted = vectors(5, 8, seed=1)
    assert relation_loss(form, 3 * wanted + 1, wanted) < 1e-9


@pytest.mark.parametrize("form", FORMS)
def test_the_order_of_questions_does_not_matter(form):
    found, wanted = vectors(5, 8, seed=0), vectors(5, 6, seed=1)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(
        relation_loss(form, found[order], wanted[order]), relation_loss(form, found, wanted)
    )


def test_a_question_is_the_mean_of_its_tokens():
    states, question = vectors(6, 4, seed=0).bfloat16(), torch.tensor([0, 0, 1, 2, 2, 2])
    parts = [part.float().mean(0) for part in states.split([2, 1, 3])]
    torch.testing.assert_close(pooled(states, question, 3), torch.stack(parts))
