"""More questions out of those that are there, for the teacher to label.

They are made of what is learned from alone, and go to the unlabelled questions: the right answer
among other choices is what the teacher says it is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import Annotated

from pydantic import Field

from firstkd.data.examples import UNLABELLED, Example, normalise
from firstkd.section import Section

Count = Annotated[int, Field(ge=0, le=16)]
TRIES = 32
"""Draws before a variant is given up, of questions whose choices are those of all others."""


class AugmentSettings(Section):
    """Variants of each question with choices, of which it may have fewer."""

    other_choices: Count = 0
    """With half of its choices, the right one among them, and other questions' for the rest."""
    orders: Count = 0
    """With its choices in another order: for `format: letter`, where the place may sway a model."""

    @property
    def any(self) -> bool:
        return bool(self.other_choices or self.orders)


def variants(examples: Sequence[Example], settings: AugmentSettings) -> Iterator[Example]:
    """Yield variants of questions; choices of others are drawn from among `examples`.

    What is drawn for a question follows from its id, and from the choices of these examples.
    """
    asked = [example for example in examples if len(example.choices or ()) > 1]
    choices = [choice for example in asked for choice in example.choices or ()]
    for example in asked:
        own = example.choices or ()
        seen = {own}
        for kind, count in (("choices", settings.other_choices), ("order", settings.orders)):
            for number in range(count):
                name = f"{example.id}#{kind}-{number}"
                drawn = Random(name)
                for _ in range(TRIES):
                    found = _others(example, choices, drawn) if kind == "choices" else [*own]
                    drawn.shuffle(found)
                    if len(found) == len(own) and tuple(found) not in seen:
                        seen.add(tuple(found))
                        yield _unlabelled(example, name, found)
                        break


def _others(example: Example, choices: Sequence[str], drawn: Random) -> list[str]:
    """Return half of an example's choices, rounded up, and others in place of the rest.

    There are fewer where none but its own were drawn.
    """
    own = example.choices or ()
    places = [i for i in range(len(own)) if i != example.answer_index]
    drawn.shuffle(places)
    right = [] if example.answer_index is None else [example.answer_index]
    found = [own[i] for i in [*right, *places][: (len(own) + 1) // 2]]
    taken = {normalise(choice) for choice in own}
    for choice in drawn.choices(choices, k=4 * len(own)):
        if len(found) < len(own) and (text := normalise(choice)) not in taken:
            taken.add(text)
            found.append(choice)
    return found


def _unlabelled(example: Example, name: str, choices: Sequence[str]) -> Example:
    asked = replace(example, id=name, choices=tuple(choices), split=UNLABELLED)
    return replace(asked, response="", answer_index=None)
