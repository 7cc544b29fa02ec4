import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from firstkd import objective
from firstkd.objective import (
    choice_kl,
    choice_scores,
    head_logprobs,
    head_topk_logprobs,
    sparse_kl,
)

N, H, V = 7, 5, 23


@pytest.fixture(params=[False, True], ids=["one chunk", "chunks of two rows"])
def head(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(objective, "CHUNK_BYTES", 2 * 4 * V)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, H, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(V, H, dtype=torch.float64, generator=generator, requires_grad=True)
    return hidden, weight


def test_head_logprobs_equal_the_dense_log_softmax_with_its_gradients(head):
    hidden, weight = head
    # a position may predict several tokens, one token twice, or none
    rows, targets = torch.tensor([0, 0, 0, 1, 3, 6, 6]), torch.tensor([4, 4, 9, 0, 22, 1, 2])
    dense = (hidden @ weight.T).log_softmax(-1)[rows, targets]
    fused = head_logprobs(hidden, weight, rows, targets)
    torch.testing.assert_close(fused, dense, rtol=0, atol=1e-9)
    upstream = torch.linspace(-1, 2, len(rows), dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad(fused, (hidden, weight), upstream),
        torch.autograd.grad(dense, (hidden, weight), upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def test_head_topk_and_its_tail_equal_the_dense_ones_with_their_gradients(head):
    hidden, weight = head
    top_ids = torch.tensor([[0, 5, 7]]).repeat(N, 1) + torch.arange(N)[:, None]
    logprobs = (hidden @ weight.T).log_softmax(-1)
    off_head = logprobs.scatter(-1, top_ids, -torch.inf)
    dense = (logprobs.gather(-1, top_ids), off_head.logsumexp(-1))
    fused = head_topk_logprobs(hidden, weight, top_ids)
    upstream = [torch.randn_like(output) for output in dense]
    for ours, theirs in zip(
        (*fused, *torch.autograd.grad(fused, (hidden, weight), upstream)),
        (*dense, *torch.autograd.grad(dense, (hidden, weight), upstream)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def test_the_objective_passes_gradcheck(head):
    hidden, weight = head
    top_ids = torch.tensor([[0, 5, 7]]).repeat(N, 1)
    target = torch.full((N, 3), 0.25, dtype=torch.float64)

    def loss(hidden, weight):
        return sparse_kl(target, *head_topk_logprobs(hidden, weight, top_ids), "ghost").sum()

    assert gradcheck(loss, (hidden, weight), fast_mode=True)


def test_the_tail_of_a_certain_head_is_exact_not_one_minus_one():
    weight = torch.eye(4, dtype=torch.float64)
    hidden = torch.tensor([[60.0, 0.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    _, log_tail = head_topk_logprobs(hidden, weight, torch.tensor([[0]]))
    assert log_tail.item() == pytest.approx(math.log(3) - 60, abs=1e-9)
    log_tail.sum().backward()
    assert torch.isfinite(hidden.grad).all()


def test_every_token_in_the_head_leaves_no_tail_and_no_nan(head):
    hidden, weight = head
    logprobs, log_tail = head_topk_logprobs(hidden, weight, torch.arange(V).repeat(N, 1))
    assert (log_tail == -torch.inf).all()
    target = logprobs.detach().exp()
    loss = sparse_kl(target / target.sum(-1, keepdim=True), logprobs, log_tail, "ghost").sum()
    assert loss.item() == pytest.approx(0, abs=1e-9)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss, (hidden, weight)))


def test_sparse_kl_with_all_of_the_vocabulary_is_the_dense_kl(head):
    hidden, weight = head
    teacher = torch.rand(N, V, dtype=torch.float64).softmax(-1)
    logprobs, log_tail = head_topk_logprobs(hidden, weight, torch.arange(V).repeat(N, 1))
    dense = F.kl_div((hidden @ weight.T).log_softmax(-1), teacher, reduction="none").sum(-1)
    torch.testing.assert_close(sparse_kl(teacher, logprobs, log_tail, "ghost"), dense)
    torch.testing.assert_close(sparse_kl(teacher, logprobs, log_tail, "renormalise"), dense)


def test_ghost_is_the_kl_with_the_tail_as_one_bin(head):
    hidden, weight = head
    top_ids = torch.tensor([[1, 3]]).repeat(N, 1)
    teacher = torch.full((N, 2), 0.3, dtype=torch.float64)
    student = (hidden @ weight.T).softmax(-1)
    bins = torch.stack(
        [student[:, 1], student[:, 3], 1 - student[:, 1] - student[:, 3]], dim=-1
    ).log()
    full = torch.cat([teacher, torch.full((N, 1), 0.4, dtype=torch.float64)], dim=-1)
    expected = F.kl_div(bins, full, reduction="none").sum(-1)
    torch.testing.assert_close(
        sparse_kl(teacher, *head_topk_logprobs(hidden, weight, top_ids), "ghost"), expected
    )


def fitted_top1(tail_policy: str) -> float:
    """The top-1 probability of free logits trained on a teacher of 0.45, 0.15, 0.1 and a tail."""
    teacher = torch.tensor([[0.45, 0.15, 0.1]], dtype=torch.float64)
    logits = torch.randn(1, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logits.requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.05)
    identity = torch.eye(12, dtype=torch.float64)
    for _ in range(1500):
        optimizer.zero_grad()
        found = head_topk_logprobs(logits, identity, torch.tensor([[2, 5, 7]]))
        sparse_kl(teacher, *found, tail_policy).sum().backward()
        optimizer.step()
    return float(logits.softmax(-1)[0, 2])


def test_a_student_converges_to_its_teacher_not_to_one_hot():
    assert fitted_top1("ghost") == pytest.approx(0.45, abs=0.01)


def test_the_published_loss_leaves_the_mass_of_the_head_where_it_was():
    # only the ratios within the head are learnt: 0.45/0.7 of whatever mass it has
    assert fitted_top1("renormalise") != pytest.approx(0.45, abs=0.05)


def test_choice_scores_are_means_over_each_choices_tokens():
    logprobs = torch.tensor([-1.0, -2.0, -4.0, -5.0])
    mask = torch.tensor([[True, True, False]])
    scores = choice_scores(logprobs, torch.tensor([0, 1, 1, 1]), mask)
    torch.testing.assert_close(scores, torch.tensor([[-1.0, -11 / 3, -torch.inf]]))


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
