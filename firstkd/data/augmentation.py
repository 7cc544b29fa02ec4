"""Make more questions from those that models learn from, for the teacher to label.

They are added to the unlabelled questions: the teacher decides which of the new choices is right.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import Annotated

from pydantic import Field

from firstkd.data.examples import UNLABELLED, Example, normalise
from firstkd.section import Section

Count = Annotated[int, Field(ge=0, le=16)]
TRIES = 8
"""Attempts to draw a variant that is new; if none is, the variant is left out."""


class AugmentSettings(Section):
    """Variants of each question with choices; fewer if not enough distinct ones are found."""

    other_choices: Count = 0
    """Variants that keep half of the choices, including the right one if it is known, and take
    the rest from other questions of the same data set."""
    orders: Count = 0
    """Variants with reordered choices: for `format: letter`, where position may sway a model."""

    @property
    def is_asked_for(self) -> bool:
        return bool(self.other_choices or self.orders)


def variants(examples: Sequence[Example], settings: AugmentSettings) -> Iterator[Example]:
    """Yield variants of questions; other choices are drawn from those of `examples`.

    A question's id and these choices determine what is drawn for it.
    """
    asked = [example for example in examples if len(example.choices or ()) > 1]
    choices: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for example in asked:
        for choice in example.choices or ():
            choices[example.source].setdefault(normalise(choice), choice)
    pools = {source: [*found.items()] for source, found in choices.items()}
    seen = {(example.asked, example.choices) for example in asked}
    for example in asked:
        for kind, count in (("choices", settings.other_choices), ("order", settings.orders)):
            for number in range(count):
                name = f"{example.id}#{kind}-{number}"
                pool = pools[example.source] if kind == "choices" else None
                for found in _drawn(example, pool, Random(name)):
                    if (example.asked, found) not in seen:
                        seen.add((example.asked, found))
                        yield _unlabelled(example, name, found)
                        break


def _drawn(
    example: Example, pool: Sequence[tuple[str, str]] | None, drawn: Random
) -> Iterator[tuple[str, ...]]:
    """Yield TRIES sets of choices, half of each from any `pool`; none if that has too few."""
    own = example.choices or ()
    for _ in range(TRIES):
        found = [*own] if pool is None else _exchanged(example, pool, drawn)
        if len(found) < len(own):
            return
        drawn.shuffle(found)
        yield tuple(found)


def _exchanged(example: Example, pool: Sequence[tuple[str, str]], drawn: Random) -> list[str]:
    """Return half of the choices, rounded up, and others from the pool; fewer if it has too few."""
    own = example.choices or ()
    places = [i for i in range(len(own)) if i != example.answer_index]
    drawn.shuffle(places)
    right = [] if example.answer_index is None else [example.answer_index]
    kept = [own[i] for i in [*right, *places][: (len(own) + 1) // 2]]
    taken = {normalise(choice) for choice in own}
    # at worst, the sample includes all of the question's own choices
    sample = drawn.sample(pool, min(len(pool), 2 * len(own)))
    others = [choice for text, choice in sample if text not in taken]
    return [*kept, *others[: len(own) - len(kept)]]


def _unlabelled(example: Example, name: str, choices: tuple[str, ...]) -> Example:
    asked = replace(example, id=name, choices=choices, split=UNLABELLED)
    return replace(asked, response="", answer_index=None)
