"""The term `relation`: how questions relate to each other in the student's hidden states."""

from typing import TYPE_CHECKING, Literal

from firstkd.data.prompts import Question
from firstkd.terms.base import Sum
from firstkd.terms.places import StatesTerm

if TYPE_CHECKING:
    from firstkd.models.view import View
    from firstkd.signals.target import AnyTarget


class Relation(StatesTerm):
    """Mean difference in how a micro-batch's questions relate to each other; counts questions.

    A question's vector is the mean state of all its tokens. Relations are numbers, so widths may
    differ. Questions are compared within each micro-batch, and a step averages over those: the loss
    depends on how a step is cut into micro-batches, but not on which process gets which.
    A question alone has no relations, so its loss is 0 in every form.
    """

    kind: Literal["relation"]

    form: Literal["similarity", "distance", "angle", "correlation"] = "distance"
    """`similarity`: squared difference of the scaled products (Tung and Mori 2019). `distance` and
    `angle`: Huber loss of scaled distances and of cosines (RKD, Park et al. 2019); angles need
    memory for the cube of the micro-batch's questions. `correlation`: squared difference of
    Gaussian kernels (Peng et al. 2019)."""

    def count(self, question: Question) -> int:
        return 1

    def __call__(self, view: "View", name: str, target: "AnyTarget | None") -> Sum:
        import torch

        from firstkd.terms.relations import pooled, relation_loss

        question_T, questions = view.batch.question_T, len(view.batch.index_B)
        losses = []
        for states in self.compared(view, target):
            found, wanted = (pooled(each_TH, question_T, questions) for each_TH in states)
            losses.append(relation_loss(self.form, found, wanted))
        return Sum(torch.stack(losses).mean(), questions, {})
