"""How tokens relate to each other by their vectors.

Legend: B questions, L tokens of each, T tokens of them all without padding, A relation heads,
H width of all heads together.
"""

import torch
from torch import Tensor

from firstkd.terms.divergences import ABSENT


def relation_kl(
    found_TH: Tensor, wanted_TH: Tensor, is_token_BL: Tensor, seen_BLL: Tensor, heads: int
) -> Tensor:
    """Return KL(wanted ‖ found) of the relations, mean over heads, summed over tokens."""
    found = log_relations(found_TH, is_token_BL, seen_BLL, heads)
    wanted = log_relations(wanted_TH, is_token_BL, seen_BLL, heads)
    kl_BAL = (wanted.exp() * (wanted - found)).sum(-1)
    return (kl_BAL * is_token_BL[:, None]).sum() / heads


def log_relations(vectors_TH: Tensor, is_token_BL: Tensor, seen_BLL: Tensor, heads: int) -> Tensor:
    """Return log softmax(R Rᵀ/√d) [B, A, L, L] over the tokens seen, in at least float32."""
    wide = torch.promote_types(vectors_TH.dtype, torch.float32)
    rows_BLH = vectors_TH.new_zeros(*is_token_BL.shape, vectors_TH.shape[1], dtype=wide)
    rows_BLH[is_token_BL] = vectors_TH.to(wide)
    heads_BALd = rows_BLH.unflatten(-1, (heads, -1)).transpose(1, 2)
    scores_BALL = heads_BALd @ heads_BALd.mT / heads_BALd.shape[-1] ** 0.5
    relations: Tensor = scores_BALL.masked_fill(~seen_BLL[:, None], ABSENT).log_softmax(-1)
    return relations
