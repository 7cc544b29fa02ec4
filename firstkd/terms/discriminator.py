"""A network that tells the student's states from another model's, trained against the student.

Legend: T tokens, B questions, H hidden size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firstkd.terms.relations import pooled


class Discriminator(nn.Module):
    """D(f) of a question's mean state f, scaled to length √H so that its size reveals nothing."""

    def __init__(self, narrow: int, wide: int, units: int) -> None:
        super().__init__()
        self.projector = nn.Linear(narrow, wide, bias=False) if narrow != wide else nn.Identity()
        self.score = nn.Sequential(nn.Linear(wide, units), nn.GELU(), nn.Linear(units, 1))

    def forward(self, states_TH: Tensor, question_T: Tensor, questions: int) -> Tensor:
        """Return D [B] for the other model's states."""
        mean_BH = pooled(states_TH, question_T, questions)
        tiny = torch.finfo(mean_BH.dtype).tiny
        scaled_BH = F.rms_norm(mean_BH, mean_BH.shape[-1:], eps=tiny)
        score_B: Tensor = self.score(scaled_BH.to(states_TH.dtype))[:, 0]
        return score_B.to(mean_BH.dtype)

    def of_student(self, states_TH: Tensor, question_T: Tensor, questions: int) -> Tensor:
        """Return D [B] for the student's states, reversing the gradient on its way back to them.

        D learns to tell the two models apart; the student and its projector learn the opposite.
        """
        projected_TH = reversed_gradient(self.projector(states_TH))
        score_B: Tensor = self(projected_TH, question_T, questions)
        return score_B


def reversed_gradient(values: Tensor) -> Tensor:
    """Return the same values, gradient negated (Ganin and Lempitsky 2015, eq. 14 and 15)."""
    return 2 * values.detach() - values


def told_apart(ours_B: Tensor, theirs_B: Tensor) -> Tensor:
    """Return half of −log σ(D(teacher)) − log(1 − σ(D(student))), per question [B].

    It is log 2 if the discriminator cannot tell which is which.
    """
    return (F.softplus(-theirs_B) + F.softplus(ours_B)) / 2
