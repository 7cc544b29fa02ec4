"""The term `flow`: how the student's states change from one place to the next."""

from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from firstkd.data.prompts import Question
from firstkd.errors import ConfigError
from firstkd.signals.base import Pairs
from firstkd.terms.base import Pairing, Sum
from firstkd.terms.places import LayerMap, StatesTerm

if TYPE_CHECKING:
    from torch import Tensor

    from firstkd.models.view import View
    from firstkd.signals.target import AnyTarget


class Flow(StatesTerm):
    """Squared difference between two models' flows from a place to the next; counts questions."""

    kind: Literal["flow"]

    layers: LayerMap = "uniform"
    """As for `hidden`, but with at least two places."""
    form: Literal["gram", "length"] = "gram"
    """`gram`: F₁ᵀF₂/L over a question's L tokens, mean over the entries of the matrix (FSP, Yim et
    al. 2017, eq. 1 and 2); widths must agree. `length`: ‖f₂ − f₁‖ of the mean states, over its mean
    in the micro-batch: what an instance relationship graph adds to its vertices and edges (after
    Liu et al. 2019)."""

    def pairs(self, pairing: Pairing, key: str) -> Pairs:
        found = super().pairs(pairing, key)
        if len(found) < 2:
            raise ConfigError(
                f"{key}.layers: a single place, but flow compares one place with the next; set "
                "uniform, kept or at least two pairs of places"
            )
        narrow, wide = pairing.widths
        if self.form == "gram" and narrow != wide:
            raise ConfigError(
                f"{key}.form: gram compares matrices of {narrow} × {narrow} and {wide} × {wide} "
                "numbers, which requires equal widths; set length, or use the kind relation"
            )
        return found

    def count(self, question: Question) -> int:
        return 1

    def __call__(self, view: "View", name: str, target: "AnyTarget | None") -> Sum:
        import torch

        question_T, questions = view.batch.question_T, len(view.batch.index_B)
        places, losses = self.compared(view, target), []
        for here, there in pairwise(places):
            of_student, of_other = (
                self._flow(first_TH, second_TH, question_T, questions)
                for first_TH, second_TH in zip(here, there, strict=True)
            )
            losses += [
                (ours - theirs).square().mean()
                for ours, theirs in zip(of_student, of_other, strict=True)
            ]
        return Sum(torch.stack(losses).sum() / (len(places) - 1), questions, {})

    def _flow(
        self, first_TH: "Tensor", second_TH: "Tensor", question_T: "Tensor", questions: int
    ) -> "list[Tensor]":
        """Return a matrix or a number for each question."""
        import torch

        from firstkd.terms.relations import pooled

        if self.form == "length":
            change_BH = pooled(second_TH - first_TH, question_T, questions)
            length_B = change_BH.norm(dim=-1)
            tiny = torch.finfo(length_B.dtype).tiny
            return [*(length_B / length_B.mean().clamp_min(tiny))]
        wide = torch.promote_types(first_TH.dtype, torch.float32)
        tokens = question_T.bincount(minlength=questions).tolist()
        parts = zip(first_TH.to(wide).split(tokens), second_TH.to(wide).split(tokens), strict=True)
        return [first.mT @ second / len(first) for first, second in parts]
