import torch
import torch.nn.functional as F

from firstkd.recalibration.temperature import Temperature
from firstkd.signals.knowledge import Knowledge
from firstkd.terms.divergences import choice_kl, sparse_kl


def test_the_tail_is_the_stored_one_not_what_rounded_probabilities_lack_to_one():
    exact = torch.tensor([[0.61, 0.3899, 0.00005]], dtype=torch.float64)
    tail = 1 - exact.sum(-1)
    rounded = exact.log().half().double().exp()
    assert abs(float(1 - rounded.sum()) / float(tail) - 1) > 0.5  # what the store saves us from
    log_student = torch.tensor([[0.3, 0.2, 0.1]], dtype=torch.float64).log()
    log_tail = torch.tensor([0.4], dtype=torch.float64).log()
    found = sparse_kl(rounded, tail, log_student, log_tail, "ghost")
    expected = sparse_kl(exact, tail, log_student, log_tail, "ghost")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    # an empty tail costs nothing, not even where the student has none either
    none = torch.zeros(1, dtype=torch.float64)
    assert torch.isfinite(sparse_kl(rounded, none, log_student, none - torch.inf, "ghost")).all()


def test_choice_kl_is_zero_at_the_target_and_ignores_missing_choices():
    target = torch.tensor([[0.7, 0.3, 0.0], [0.2, 0.5, 0.3]])
    scores = target.log().requires_grad_()
    torch.testing.assert_close(choice_kl(target, scores), torch.zeros(2), atol=1e-6, rtol=0)
    (gradient,) = torch.autograd.grad(choice_kl(target, scores + 0.0).sum(), scores)
    assert torch.isfinite(gradient).all()
    other = torch.tensor([[0.0, 0.0, -torch.inf], [0.0, 0.0, 0.0]])
    expected = F.kl_div(other[1:].log_softmax(-1), target[1:], reduction="sum")
    torch.testing.assert_close(choice_kl(target, other)[1:].sum(), expected)


def test_choice_kl_teaches_probabilities_that_are_not_taken_for_logits():
    target = torch.tensor([[0.45, 0.35, 0.2]])
    scores = torch.zeros(1, 3, requires_grad=True)
    optimizer = torch.optim.SGD([scores], lr=1.0)
    for _ in range(300):
        optimizer.zero_grad()
        choice_kl(target, scores).sum().backward()
        optimizer.step()
    torch.testing.assert_close(scores.softmax(-1), target, atol=0.01, rtol=0)


def test_a_recalibrated_teacher_changes_the_student_which_equal_temperatures_would_not():
    teacher = torch.tensor([[4.0, 1.0, 0.0]], dtype=torch.float64)
    student = teacher.clone().requires_grad_()
    # the published defect: with the same temperature on both sides the student is left as it was
    both = choice_kl((teacher / 3).softmax(-1), student / 3)
    (gradient,) = torch.autograd.grad(both.sum(), student)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)
    decision = Knowledge.of_choices(teacher.log_softmax(-1), torch.zeros(1, dtype=torch.int64))
    ours = choice_kl(Temperature(3.0).apply(decision), student)
    (gradient,) = torch.autograd.grad(ours.sum(), student)
    assert gradient[0, 0] > 0.1
