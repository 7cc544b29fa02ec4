import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck
from torch.utils.flop_counter import FlopCounterMode

from firstkd.models import head as objective
from firstkd.models.head import HeadScores, head_scores
from firstkd.terms.divergences import sparse_kl

N, H, V = 7, 5, 23


@pytest.fixture(params=[False, True], ids=["one chunk", "chunks of two rows"])
def head(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(objective, "CHUNK_ROWS", 2)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, H, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(V, H, dtype=torch.float64, generator=generator, requires_grad=True)
    return hidden, weight


def dense_scores(logits, rows, targets, decisions, top_ids):
    """What head_scores computes, from the [N, V] logits that it never makes."""
    logprobs = logits.log_softmax(-1)
    tail = logprobs[decisions].scatter(-1, top_ids, -torch.inf)
    return HeadScores(
        logprobs[rows, targets],
        logprobs[decisions].gather(-1, top_ids),
        tail.logsumexp(-1),
        tail.amax(-1),
        logprobs.mean(-1),
        torch.distributions.Categorical(logits=logits).entropy(),
    )


def topk_scores(hidden, weight, top_ids):
    """Scores of one decision at every position, and no pairs."""
    none = torch.zeros(0, dtype=torch.int64)
    return head_scores(hidden, weight, none, none, torch.arange(len(hidden)), top_ids)


def ghost_kl(target, found, tail_policy="ghost"):
    tail = (1 - target.sum(-1)).clamp_min(0)
    return sparse_kl(target, tail, found.top_logprobs_RK, found.log_tail_R, tail_policy)


# a position may predict several tokens, one token twice, or none; and its pairs may be candidates
PAIRS = torch.tensor([0, 0, 0, 1, 3, 6, 6]), torch.tensor([4, 4, 9, 0, 22, 1, 2])
DECISIONS = torch.tensor([6, 0, 2])


@pytest.mark.parametrize("softcap", [None, 2.0], ids=["", "softcap"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("top_k", [1, 3, 16, 22])
def test_scores_equal_the_dense_ones_with_their_gradients(head, top_k, bias, softcap):
    def differentiable(scores):
        return *scores[:3], scores.mean_logprob_N

    hidden, weight = head
    leaves = [hidden, weight]
    generator = torch.Generator().manual_seed(top_k)
    if bias:
        leaves.append(torch.randn(V, dtype=torch.float64, generator=generator).requires_grad_())
    top_ids = torch.stack([torch.randperm(V, generator=generator)[:top_k] for _ in DECISIONS])
    logits = F.linear(*leaves)
    if softcap:
        logits = softcap * (logits / softcap).tanh()
    dense = dense_scores(logits, *PAIRS, DECISIONS, top_ids)
    bias_V = leaves[2] if bias else None
    fused = head_scores(hidden, weight, *PAIRS, DECISIONS, top_ids, bias_V, softcap, True)
    upstream = [torch.randn_like(output) for output in differentiable(dense)]
    for ours, theirs in zip(
        (*fused, *torch.autograd.grad(differentiable(fused), leaves, upstream)),
        (*dense, *torch.autograd.grad(differentiable(dense), leaves, upstream)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def test_a_tied_head_gets_the_gradients_of_both_its_uses(head):
    _, weight = head
    ids = torch.tensor([1, 5, 5, 2, 9, 0, 3])
    top_ids = torch.tensor([[0, 5, 7]]).repeat(3, 1)
    embedded = weight[ids].tanh()
    fused = head_scores(embedded, weight, *PAIRS, DECISIONS, top_ids)
    dense = dense_scores(embedded @ weight.T, *PAIRS, DECISIONS, top_ids)
    (ours,), (theirs,) = (
        torch.autograd.grad(sum(output.sum() for output in found[:3]), weight, retain_graph=True)
        for found in (fused, dense)
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("tail_policy", ["ghost", "renormalise"])
def test_the_objective_passes_gradcheck(head, tail_policy):
    hidden, weight = head
    top_ids = torch.tensor([[0, 5, 7]]).repeat(N, 1)
    target = torch.full((N, 3), 0.25, dtype=torch.float64)

    def loss(hidden, weight):
        return ghost_kl(target, topk_scores(hidden, weight, top_ids), tail_policy).sum()

    assert gradcheck(loss, (hidden, weight))


def test_positions_of_weight_zero_teach_nothing(head):
    hidden, weight = head
    top_ids = torch.tensor([[0, 5, 7]]).repeat(N, 1)
    target = torch.full((N, 3), 0.25, dtype=torch.float64)
    counts = torch.tensor([1.0, 0, 1, 0, 0, 2, 0], dtype=torch.float64)
    weighted = (counts * ghost_kl(target, topk_scores(hidden, weight, top_ids))).sum()
    kept = torch.tensor([0, 2, 5, 5])
    alone = ghost_kl(target[kept], topk_scores(hidden[kept], weight, top_ids[kept])).sum()
    for ours, theirs in zip(
        torch.autograd.grad(weighted, (hidden, weight)),
        torch.autograd.grad(alone, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
        assert (ours != 0).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e4])
@pytest.mark.parametrize("top_k", [1, 8, V])
def test_tiny_and_huge_logits_give_no_nan(scale, top_k, dtype):
    generator = torch.Generator().manual_seed(0)
    hidden = (torch.randn(N, H, generator=generator) * scale).to(dtype).requires_grad_()
    weight = torch.randn(V, H, generator=generator).to(dtype).requires_grad_()
    top_ids = torch.arange(top_k).repeat(N, 1)
    target = torch.full((N, top_k), 0.9 / top_k)
    loss = ghost_kl(target, topk_scores(hidden, weight, top_ids)).sum()
    gradients = torch.autograd.grad(loss, (hidden, weight))
    assert all(torch.isfinite(found).all() for found in (loss, *gradients))


@pytest.mark.parametrize("certainty", [20.0, 60.0, 800.0])
def test_the_tail_of_a_certain_head_is_exact_not_one_minus_one(certainty):
    weight = torch.eye(4, dtype=torch.float64)
    hidden = torch.tensor([[certainty, 0.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    found = topk_scores(hidden, weight, torch.tensor([[0]]))
    expected = math.log(3) - certainty - math.log1p(3 * math.exp(-certainty))
    assert found.log_tail_R.item() == pytest.approx(expected, abs=1e-9)
    # S_p → 1: the formula's p·(S_t − S_p)/(1 − S_p) is 0/0, and what it means is −(1 − S_t)/3
    ghost_kl(torch.tensor([[0.4]], dtype=torch.float64), found).sum().backward()
    expected = torch.tensor([[0.6, -0.2, -0.2, -0.2]], dtype=torch.float64)
    torch.testing.assert_close(hidden.grad, expected, rtol=0, atol=1e-7)


def test_a_teacher_whose_head_is_everything_leaves_the_tail_nothing(head):
    hidden, weight = head
    top_ids = torch.tensor([[0, 5, 7]]).repeat(N, 1)
    teacher = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64).repeat(N, 1)
    dense = torch.zeros(N, V, dtype=torch.float64).scatter(-1, top_ids, teacher)
    expected = F.kl_div((hidden @ weight.T).log_softmax(-1), dense, reduction="sum")
    found = ghost_kl(teacher, topk_scores(hidden, weight, top_ids)).sum()
    for ours, theirs in zip(
        (found, *torch.autograd.grad(found, (hidden, weight))),
        (expected, *torch.autograd.grad(expected, (hidden, weight))),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def test_every_token_in_the_head_leaves_no_tail_and_no_nan(head):
    hidden, weight = head
    found = topk_scores(hidden, weight, torch.arange(V).repeat(N, 1))
    assert (found.log_tail_R == -torch.inf).all()
    target = found.top_logprobs_RK.detach().exp()
    loss = ghost_kl(target / target.sum(-1, keepdim=True), found).sum()
    assert loss.item() == pytest.approx(0, abs=1e-9)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss, (hidden, weight)))


@pytest.mark.parametrize("tail_policy", ["ghost", "renormalise"])
def test_sparse_kl_with_all_of_the_vocabulary_is_the_dense_kl(head, tail_policy):
    hidden, weight = head
    teacher = torch.rand(N, V, dtype=torch.float64).softmax(-1)
    found = ghost_kl(
        teacher, topk_scores(hidden, weight, torch.arange(V).repeat(N, 1)), tail_policy
    )
    dense = F.kl_div((hidden @ weight.T).log_softmax(-1), teacher, reduction="none").sum(-1)
    torch.testing.assert_close(found, dense, rtol=0, atol=1e-9)


@pytest.mark.parametrize("top_k", [1, 2, 5, 64])
def test_ghost_is_the_kl_with_the_tail_as_one_bin(top_k):
    generator = torch.Generator().manual_seed(top_k)
    logits = torch.randn(2, N, 100, dtype=torch.float64, generator=generator).requires_grad_()
    teacher = logits.detach()[1].softmax(-1)
    top_ids = teacher.topk(top_k).indices

    def bins(probabilities):
        head = probabilities.gather(-1, top_ids)
        return torch.cat([head, 1 - head.sum(-1, keepdim=True)], dim=-1)

    dense = F.kl_div(bins(logits[0].softmax(-1)).log(), bins(teacher), reduction="none").sum(-1)
    identity = torch.eye(100, dtype=torch.float64)
    fused = ghost_kl(teacher.gather(-1, top_ids), topk_scores(logits[0], identity, top_ids))
    torch.testing.assert_close(fused, dense, rtol=0, atol=1e-9)
    ours, theirs = (torch.autograd.grad(f.sum(), logits)[0] for f in (fused, dense))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def fitted_top1(tail_policy: str) -> float:
    """The top-1 probability of free logits trained on a teacher of 0.45, 0.15, 0.1 and a tail."""
    teacher = torch.tensor([[0.45, 0.15, 0.1]], dtype=torch.float64)
    logits = torch.randn(1, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logits.requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.05)
    identity = torch.eye(12, dtype=torch.float64)
    for _ in range(1500):
        optimizer.zero_grad()
        found = topk_scores(logits, identity, torch.tensor([[2, 5, 7]]))
        ghost_kl(teacher, found, tail_policy).sum().backward()
        optimizer.step()
    return float(logits.detach().softmax(-1)[0, 2])


def test_a_student_converges_to_its_teacher_not_to_one_hot():
    assert fitted_top1("ghost") == pytest.approx(0.45, abs=0.01)


def test_the_published_loss_leaves_the_mass_of_the_head_where_it_was():
    # only the ratios within the head are learnt: 0.45/0.7 of whatever mass it has
    assert fitted_top1("renormalise") != pytest.approx(0.45, abs=0.05)


@pytest.mark.parametrize(("tail_policy", "taught"), [("ghost", True), ("renormalise", False)])
def test_the_mass_of_the_head_is_taught_only_with_its_tail(tail_policy, taught):
    # the head has the teacher's ratios and too much mass: nothing but its mass is to be learnt
    logits = torch.tensor([[6.0, 4.0, 1.0, 1.0, 1.0, 1.0]], dtype=torch.float64).requires_grad_()
    conditional = logits.detach()[:, :2].softmax(-1)
    found = topk_scores(logits, torch.eye(6, dtype=torch.float64), torch.tensor([[0, 1]]))
    ghost_kl(conditional * 0.5, found, tail_policy).sum().backward()
    gradient = logits.grad[0]
    assert (gradient[:2].sum() > 0.1) == taught
    assert (gradient[2:] < -0.05).all() == taught


@pytest.mark.parametrize("frozen", [0, 1], ids=["hidden", "weight"])
def test_what_is_frozen_costs_nothing_and_the_other_gets_the_same_gradient(head, frozen):
    upstream = torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    top_ids = torch.tensor([[0, 5, 7]]).repeat(3, 1)

    def gradients():
        for leaf in head:
            leaf.grad = None
        found = head_scores(*head, *PAIRS, DECISIONS, top_ids)
        with FlopCounterMode(display=False) as counter:
            (found.log_tail_R * upstream).sum().backward()
        return [leaf.grad for leaf in head], counter.get_total_flops()

    both, whole = gradients()
    head[frozen].requires_grad_(False)
    alone, half = gradients()
    assert alone[frozen] is None
    assert torch.equal(alone[1 - frozen], both[1 - frozen])
    assert whole - half == 2 * N * V * H  # one product of [N, V] less
