"""Settings of models."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from firstkd.data.examples import Example, example_key, fold_of
from firstkd.data.prompts import Question
from firstkd.models.init.kinds import AnyInit
from firstkd.models.needs import Needs
from firstkd.open_text.settings import OnPolicy
from firstkd.section import Name, Positive, Section
from firstkd.signals.base import Signal
from firstkd.signals.difference import Difference
from firstkd.terms.bandit_settings import Bandit
from firstkd.terms.kinds import Learn


class LoraSettings(Section):
    """Train two small matrices beside each linear layer instead of all weights (Hu et al. 2021)."""

    rank: Positive
    alpha: Positive
    """Their output is multiplied by alpha / rank."""


class LeftOut(Section):
    """One of the `of` folds into which training examples are split by hash."""

    fold: Annotated[int, Field(ge=0)]
    of: Annotated[int, Field(ge=2)]

    @model_validator(mode="after")
    def _fold_exists(self) -> Self:
        if self.fold >= self.of:
            raise ValueError(
                f"fold: {self.fold} is out of range; with of: {self.of}, set 0 to {self.of - 1}"
            )
        return self

    def keeps(self, example: Example) -> bool:
        return fold_of(example_key(example), self.of) != self.fold


class ModelSettings(Section):
    """A named network: how it starts, and what it learns, if anything."""

    init: AnyInit
    train: Name | None = None
    """The section of `train` that says how it is trained."""
    learn: Learn | None = None
    order: Annotated[int, Field(ge=0)] = 0
    """Another number gives another order of the questions: all else equal, another member of an
    ensemble."""
    leave_out: LeftOut | None = None
    """Examples it must not learn from, so that the signal `out_of_fold` can ask it about them."""
    keep: Difference | None = None
    """Which of the answered examples it learns from; null for all."""
    on_policy: OnPolicy | None = None
    """For a student that also learns from open text that it writes itself; null for none."""
    bandit: Bandit | None = None
    """Which of its terms take turns; null for all at once."""

    @model_validator(mode="after")
    def _learning_is_training(self) -> Self:
        if (self.train is None) != (self.learn is None):
            given, lacking = ("learn", "train") if self.train is None else ("train", "learn")
            raise ValueError(f"{given} without {lacking}: a model needs both to be trained")
        if self.leave_out is not None and self.learn is None:
            raise ValueError(
                "leave_out without learn: it learns nothing, so nothing can be left out"
            )
        if self.keep is not None and self.learn is None:
            raise ValueError("keep without learn: it learns nothing, so there is nothing to choose")
        if self.on_policy is not None and self.learn is None:
            raise ValueError("on_policy without learn: it would write but learn nothing")
        if self.bandit is not None and self.learn is None:
            raise ValueError("bandit without learn: it has no terms that could take turns")
        if self.learn is not None and not self.init.can_learn:
            raise ValueError(
                f"a model of kind {self.init.kind} is made once and does not learn; train "
                "another model that starts with `init: { kind: copy, of: … }`"
            )
        return self

    @property
    def signals(self) -> list[str]:
        """Names of the signals that decide what it learns, each once."""
        of_terms = [term.signal for term in (self.learn or {}).values() if term.signal is not None]
        return list(dict.fromkeys([*of_terms, *(self.keep.signals if self.keep else ())]))

    def misfits(
        self, signals: Mapping[str, Signal], peers: Sequence[str]
    ) -> Iterator[tuple[str, str]]:
        """Yield each key that does not fit the signals or the models trained with it, and why."""
        if self.keep is not None:
            yield from ((f"keep.{key}", problem) for key, problem in self.keep.misfits(signals))
        if self.on_policy is not None:
            yield from self.on_policy.misfits(self.learn or {}, signals, peers)
        if self.bandit is not None:
            yield from (("bandit", why) for why in self.bandit.misfits(self.learn or {}, peers))

    def misfits_beside(
        self, name: str, peer: "ModelSettings", mutual: Collection[str]
    ) -> Iterator[tuple[str, str]]:
        """Yield each key, with its dot, that keeps it from being trained together with the model
        of that name, and why. `mutual` are the signals that the two learn from each other."""
        for key in ("train", "leave_out", "order", "keep"):
            if getattr(self, key) != getattr(peer, key):
                yield (
                    f".{key}",
                    f"differs from models.{name}'s, but the two are trained together because each "
                    "learns from a live signal of the other; set both to the same value",
                )
        same_start = self is not peer and self.init == peer.init
        if same_start and self._terms(mutual) == peer._terms(mutual):
            yield (
                "",
                f"starts and learns just like models.{name}, from which it learns, so both stay "
                "identical and teach each other nothing; start one of them from another model",
            )

    def _terms(self, mutual: Collection[str]) -> list[dict[str, Any]]:
        """Settings of its terms, regardless of which of the `mutual` signals each is from."""
        return [
            term.model_dump(exclude={"from_"} if term.signal in mutual else None)
            for term in (self.learn or {}).values()
        ]

    def learns_from(self, question: Question) -> bool:
        """Whether any of its terms applies to a question, as it will be asked."""
        if self.on_policy is not None and len(question.responses) < 2:  # it answers open text
            return True
        return any(term.count(question) for term in (self.learn or {}).values())

    @property
    def adapts(self) -> bool:
        """Whether its training asks calibration questions (firstkd/train/rounds.py)."""
        return self.bandit is not None or any(t.adapts for t in (self.learn or {}).values())

    @property
    def needs(self) -> Needs:
        """What all its terms together need from a forward pass."""
        needs = Needs()
        for term in (self.learn or {}).values():
            needs |= term.needs
        return needs
