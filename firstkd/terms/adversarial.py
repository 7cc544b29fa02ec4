"""The term `adversarial`: a discriminator of student and teacher, which the student must fool."""

from typing import TYPE_CHECKING, Literal

from firstkd.data.prompts import Question
from firstkd.section import Positive
from firstkd.terms.base import Sum
from firstkd.terms.places import StatesTerm

if TYPE_CHECKING:
    from torch import nn

    from firstkd.models.view import View
    from firstkd.signals.target import AnyTarget


class Adversarial(StatesTerm):
    """−½ log σ(D(f_T)) − ½ log(1 − σ(D(f_S))), mean over pairs of places; counts questions.

    f is the mean state of a question's tokens. D is trained to minimise the loss and the student,
    by gradient reversal, to maximise it (GAN: Goodfellow et al. 2014, eq. 1; Ganin and Lempitsky
    2015). If widths differ, a projector is trained on the student's side.
    """

    kind: Literal["adversarial"]
    units: Positive = 128
    """Width of the discriminator's hidden layer."""

    def modules(self, pairs: int, widths: tuple[int, int]) -> "nn.ModuleList":
        from torch import nn

        from firstkd.terms.discriminator import Discriminator

        return nn.ModuleList([Discriminator(*widths, self.units) for _ in range(pairs)])

    def count(self, question: Question) -> int:
        return 1

    def __call__(self, view: "View", name: str, target: "AnyTarget | None") -> Sum:
        import torch

        from firstkd.terms.discriminator import Discriminator, told_apart

        question_T, questions = view.batch.question_T, len(view.batch.index_B)
        losses, fooled = [], []
        compared = zip(view.modules[name], self.compared(view, target), strict=True)
        for discriminator, (found_TH, wanted_TH) in compared:
            assert isinstance(discriminator, Discriminator)
            ours_B = discriminator.of_student(found_TH, question_T, questions)
            theirs_B = discriminator(wanted_TH.to(found_TH.dtype), question_T, questions)
            losses.append(told_apart(ours_B, theirs_B).sum())
            fooled.append((ours_B > 0).float().sum())
        return Sum(torch.stack(losses).mean(), questions, {"fooled": torch.stack(fooled).mean()})
