"""The signal `out_of_fold`: each question's answer from the teacher not trained on it.

A teacher is surer of the questions it was trained on than of others, and a temperature fitted to
others does not correct that. So K teachers each leave out a different fold of the training examples
(`leave_out`), and each question, even one that no teacher has seen, is put to just one of them: on
every split, the knowledge is that of one teacher on an unseen question.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from firstkd.data.examples import fold_of
from firstkd.signals.base import Signal
from firstkd.signals.choices import CombinedChoices

if TYPE_CHECKING:
    from torch import Tensor

    from firstkd.models.settings import ModelSettings
    from firstkd.signals.store import Records


class OutOfFold(CombinedChoices):
    """`of` names the signals of the teachers that leave out folds 0, 1, 2 …, one per fold."""

    kind: Literal["out_of_fold"]

    def check(
        self, signals: Mapping[str, Signal], models: "Mapping[str, ModelSettings]"
    ) -> str | None:
        if problem := super().check(signals, models):
            return problem
        for number, name in enumerate(self.of):
            for model in signals[name].models:
                fold = models[model].leave_out
                if fold is None or (fold.fold, fold.of) != (number, len(self.of)):
                    return (
                        f"of: {name!r} stands for fold {number}, so its teacher must not learn "
                        f"from it: set models.{model}.leave_out to {{ fold: {number}, of: "
                        f"{len(self.of)} }}"
                    )
        return None

    def combined(self, keys: "Tensor", members: "Sequence[Records]") -> "Records":
        import torch

        from firstkd.signals.store import Records

        fold_E = torch.tensor([fold_of(key, len(members)) for key in keys.tolist()])
        counts = members[0].counts
        fold_R = fold_E.repeat_interleave(counts)
        parts = torch.stack([found.columns["logprob"] for found in members])
        return Records({"logprob": parts[fold_R, torch.arange(len(fold_R))]}, counts)
