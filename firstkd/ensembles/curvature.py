"""How tightly training questions constrain the gains of the last hidden state's dimensions."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from firstkd.data.packing import BATCH_TOKENS, batches_by_length, pack
from firstkd.data.prompts import Question
from firstkd.memory import memory_explained
from firstkd.models.choice_scores import choice_scores
from firstkd.models.head import widest
from firstkd.models.scoring import ResponseScorer


@memory_explained("while measuring the curvature")
def curvature(
    model: PreTrainedModel, questions: Sequence[Question], batch_size: int
) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues [H] and eigenvectors [H, H] of the generalised Gauss-Newton matrix of
    the right choices' cross-entropy with respect to each dimension's gain, in float64."""
    scorer = ResponseScorer(model, exact=True).eval().requires_grad_(False)
    deciding = [q for q in questions if q.gold is not None and len(q.responses) > 1]
    total_HH = torch.zeros(scorer.width, scorer.width, dtype=torch.float64)
    for index in batches_by_length(deciding, batch_size, BATCH_TOKENS):
        batch = pack(deciding, index).to(scorer.head.weight.device)
        with torch.no_grad():
            hidden_NH = widest(scorer.hidden(batch))
        length = batch.input_ids_BL.shape[1]
        gains_BH = hidden_NH.new_ones(len(index), scorer.width, requires_grad=True)
        scaled_NH = hidden_NH * gains_BH[batch.positions_N // length]
        none = batch.rows_M[:0]
        logprobs_M = scorer.head(
            scaled_NH, batch.rows_M, batch.targets_M, none, none[:, None]
        ).logprobs_M
        scores_BC = choice_scores(logprobs_M, batch.response_of_M, batch.choice_mask_BC)
        # a question's scores depend only on its own gains, so one pass per choice serves them all
        jacobian_CBH = torch.stack(
            [
                torch.autograd.grad(
                    column[torch.isfinite(column)].sum(), gains_BH, retain_graph=True
                )[0]
                for column in scores_BC.unbind(-1)
            ]
        ).double()
        probabilities_BC = scores_BC.detach().double().softmax(-1)
        spread_BCC = probabilities_BC.diag_embed() - torch.einsum(
            "bi,bj->bij", probabilities_BC, probabilities_BC
        )
        found = torch.einsum("cbh,bcd,dbk->hk", jacobian_CBH, spread_BCC, jacobian_CBH)
        total_HH += found.cpu()
    values_H, vectors_HH = torch.linalg.eigh(total_HH)
    return values_H.clamp_min(0), vectors_HH


def precision_of_most_evidence(values_H: Tensor) -> Tensor:
    """Return the τ that maximises the evidence under the prior N(0, 1/τ) of H gains, all 1.

    The log evidence depends on τ by ½ (H log τ − τ H − Σ log(λ + τ)); at its maximum, τ = mean of
    λ / (λ + τ) (MacKay 1992, eq. 2.22), found by bisection, since the right side falls with τ.
    """
    low, high = values_H.new_tensor(1e-12), values_H.new_tensor(1.0)
    for _ in range(200):
        middle = (low * high).sqrt()
        if (values_H / (values_H + middle)).mean() > middle:
            low = middle
        else:
            high = middle
    return high
