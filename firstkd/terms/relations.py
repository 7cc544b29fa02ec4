"""How the questions of a micro-batch relate to each other in a model's hidden states.

Legend: T tokens, B questions, H hidden size.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SAME = 1e-3
"""Share of the mean distance: closer questions count as the same, since the direction from one to
the other is only rounding."""
GAMMA = 0.4
"""Width of the Gaussian kernel (Peng et al. 2019, sec. 4.1)."""


def pooled(states_TH: Tensor, question_T: Tensor, questions: int) -> Tensor:
    """Return the mean [B, H] over each question's tokens, in at least float32."""
    wide_TH = states_TH.to(torch.promote_types(states_TH.dtype, torch.float32))
    sums_BH = wide_TH.new_zeros(questions, wide_TH.shape[1]).index_add(0, question_T, wide_TH)
    return sums_BH / question_T.bincount(minlength=questions)[:, None]


def similarity(vectors_BH: Tensor) -> Tensor:
    """Return products [B, B], each row scaled to length 1 (Tung and Mori 2019, eq. 1 and 2)."""
    return F.normalize(vectors_BH @ vectors_BH.T, dim=-1)


def distance(vectors_BH: Tensor) -> Tensor:
    """Return distances [B, B] over their mean (Park et al. 2019, eq. 5 and 6); 0 for duplicates."""
    distance_BB = _distances(vectors_BH)
    return distance_BB / _mean_distance(distance_BB)


def angle(vectors_BH: Tensor) -> Tensor:
    """Return cosines [B, B, B] of the angle at j between i and k (Park et al. 2019, eq. 9).

    0 where two of the three are duplicates.
    """
    distance_BB = _distances(vectors_BH)
    is_same_BB = distance_BB <= SAME * _mean_distance(distance_BB)
    inverse_BB = torch.where(is_same_BB, 0.0, 1 / distance_BB.masked_fill(is_same_BB, 1.0))
    towards_BBH = (vectors_BH[None] - vectors_BH[:, None]) * inverse_BB[..., None]
    return towards_BBH @ towards_BBH.mT


def correlation(vectors_BH: Tensor) -> Tensor:
    """Return the Gaussian kernel [B, B] of the vectors at length 1, exp(−γ‖f_i − f_j‖²) (Peng et
    al. 2019, eq. 7), without the paper's Taylor series."""
    unit_BH = F.normalize(vectors_BH, dim=-1)
    return (2 * GAMMA * (unit_BH @ unit_BH.T - 1)).exp()


def _distances(vectors_BH: Tensor) -> Tensor:
    # not as ‖a‖² + ‖b‖² − 2ab, whose rounding keeps duplicates apart
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cdist(vectors_BH, vectors_BH, compute_mode=exact)


def _mean_distance(distance_BB: Tensor) -> Tensor:
    pairs = max(1, len(distance_BB) * (len(distance_BB) - 1))
    return (distance_BB.sum() / pairs).clamp_min(torch.finfo(distance_BB.dtype).tiny)


def square(difference: Tensor) -> Tensor:
    return difference.square()


def huber(difference: Tensor) -> Tensor:
    """Return x²/2 up to 1, |x| − 1/2 beyond (Park et al. 2019, eq. 7)."""
    return F.smooth_l1_loss(difference, torch.zeros_like(difference), reduction="none")


class Form(NamedTuple):
    relations: Callable[[Tensor], Tensor]
    """The relations between vectors [B, H]."""
    part: Callable[[Tensor], Tensor]
    """The loss, from the difference of two relations."""
    entries: Callable[[int], int]
    """How many relations between B questions can differ."""


FORMS = {
    "similarity": Form(similarity, square, lambda b: b * b),
    "distance": Form(distance, huber, lambda b: b * (b - 1)),
    "angle": Form(angle, huber, lambda b: b * (b - 1) * (b - 2)),
    "correlation": Form(correlation, square, lambda b: b * b),
}


def relation_loss(form: str, found_BH: Tensor, wanted_BH: Tensor) -> Tensor:
    """Return the mean over the relations of B questions, times B; widths need not agree."""
    relations, part, entries = FORMS[form]
    total = part(relations(found_BH) - relations(wanted_BH)).sum()
    return total * len(found_BH) / max(1, entries(len(found_BH)))
