"""The signal `answers`: what a model behind a server writes, and its top tokens along the way.

Every server with OpenAI's interface provides that. A student that learns from it reads these
answers in place of the right ones (sequence-level distillation: Kim and Rush 2016, arXiv
1606.07947), along with the probabilities of their tokens, and must have the same tokenizer.
Examples with choices have no such answers.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from firstkd.data.examples import Example
from firstkd.data.prompts import Question
from firstkd.errors import ConfigError
from firstkd.section import Positive
from firstkd.signals.base import Signal
from firstkd.signals.tokens import Tokens

if TYPE_CHECKING:
    from firstkd.models.settings import ModelSettings
    from firstkd.openai.answers import Answer
    from firstkd.signals.asked import AskedTeacher
    from firstkd.signals.columns import Layout
    from firstkd.signals.store import Records
    from firstkd.signals.top_k import Position

MOST = 20
"""Log-probabilities per position that OpenAI's interface returns, at most."""

log = logging.getLogger(__name__)


class Answers(Tokens):
    """Takes 28 bytes per token at top-5, and 31 for vocabularies above 65,536."""

    kind: Literal["answers"]  # type: ignore[assignment]
    is_own_text: ClassVar[bool] = True

    max_new_tokens: Positive
    """Longest answer, in tokens; longer ones are cut off."""

    @property
    def is_recalibrated(self) -> bool:
        return False

    def check(
        self, signals: Mapping[str, Signal], models: "Mapping[str, ModelSettings]"
    ) -> str | None:
        if not models[self.of].init.is_served:
            return f"of: {self.of!r} is not behind a server; use a signal of kind tokens"
        if self.select.width > MOST:
            return f"select: a server returns at most {MOST} tokens, not {self.select.width}"
        return super().check(signals, models)

    def layout(self, vocabulary_size: int, hidden_size: int = 0) -> "Layout":
        import torch

        from firstkd.signals.columns import TOKEN, Column

        return {**super().layout(vocabulary_size), TOKEN: Column(torch.int32)}

    def stand_in(self, question: Question) -> Question:
        """Return open text with the longest possible answer."""
        if len(question.responses) > 1:
            return replace(question, responses=[], gold=None)
        return replace(question, responses=[[0] * self.max_new_tokens], gold=0)

    def ask(
        self, teacher: "AskedTeacher", examples: Sequence[Example], questions: Sequence[Question]
    ) -> "Records":
        """Raise ConfigError if the server cuts most of its answers into different tokens."""
        import torch

        from firstkd.signals.columns import TOKEN
        from firstkd.signals.store import Records
        from firstkd.signals.top_k import packed

        counts = torch.zeros(len(examples), dtype=torch.int64)
        index = [i for i, example in enumerate(examples) if example.choices is None]
        answers = teacher.answers(
            [examples[i] for i in index], self.max_new_tokens, self.select.width
        )
        spoken = [i for i, answer in zip(index, answers, strict=True) if answer.text]
        read = _read(teacher, [examples[i] for i in spoken], [a for a in answers if a.text])
        found: list[tuple[Position, int]] = []
        for i, positions in zip(spoken, read, strict=True):
            counts[i] = len(positions)
            found += positions
        others = sum(not positions for positions in read)
        if others > len(read) / 2:
            raise ConfigError(
                f"models.{self.of}.init.tokenizer: the server splits {others} of {len(read)} "
                f"answers into different tokens than {teacher.served.init.tokenizer!r} does; name "
                "a model with the server's tokenizer"
            )
        if others:
            log.warning(
                "left out %d of %d answers, which the server splits differently", others, len(read)
            )
        records = packed(self.select.of_positions(found, teacher.vocabulary_size), counts)
        own = torch.tensor([token for _, token in found], dtype=torch.int32)
        return Records({**records.columns, TOKEN: own}, counts)


def _read(
    teacher: "AskedTeacher", examples: Sequence[Example], answers: "Sequence[Answer]"
) -> "list[list[tuple[Position, int]]]":
    """Return each answer's tokens, as a student reads them, with what is known at each.

    There are none if the server has cut the answer into different tokens.
    """
    from firstkd.data.prompts import encode
    from firstkd.data.spans import right_spans

    said = [
        replace(example, response=answer.text)
        for example, answer in zip(examples, answers, strict=True)
    ]
    tokenizer, prompt = teacher.served.tokenizer, teacher.prompt
    questions = encode(said, tokenizer, prompt)
    spans = right_spans(said, tokenizer, prompt)
    found = []
    for answer, question, span in zip(answers, questions, spans, strict=True):
        (ids,) = question.responses
        of_text = sum(end <= 0 for end in span.ends)
        if not answer.is_whole:
            ids = ids[:of_text]
        found.append(_places(answer, ids, of_text, teacher))
    return found


def _places(
    answer: "Answer", ids: Sequence[int], of_text: int, teacher: "AskedTeacher"
) -> "list[tuple[Position, int]]":
    """Return what is known at each id's position. After the text comes the end, which counts as
    certain if the server does not say how probable it was: the answer did end there."""
    places: list[tuple[Position, int]] = []
    for number, token in enumerate(ids):
        said = answer.tokens[number] if number < len(answer.tokens) else None
        # decoders differ in the spaces that they keep around a single token
        text = teacher.served.tokenizer.decode([token]).strip()
        if said is None or said.text.strip() != text:
            if number < of_text:
                return []
            places.append(({token: 0.0}, token))
        else:
            top = {teacher.ids[t]: value for t, value in said.top.items() if t in teacher.ids}
            places.append(({**top, token: said.logprob}, token))
    return places
