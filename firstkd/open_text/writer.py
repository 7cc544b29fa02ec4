"""A model that answers in its own words, and says how sure it is of each answer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from firstkd.data.examples import Example
from firstkd.data.packing import BATCH_TOKENS
from firstkd.data.prompts import Question, encode
from firstkd.data.settings import PromptSettings
from firstkd.measure.ranking import Floats
from firstkd.models.scoring import ScoringHead, score_questions
from firstkd.open_text.asking import open_questions, stop_tokens
from firstkd.open_text.confidence import Written
from firstkd.open_text.decoding import Draw, Text, decode
from firstkd.open_text.settings import OpenTextSettings


@dataclass(frozen=True)
class Writer:
    model: PreTrainedModel
    tokenizer: Any
    prompt: PromptSettings
    settings: OpenTextSettings
    seed: int
    batch_size: int = 32
    batch_tokens: int = BATCH_TOKENS

    def answer(self, examples: Sequence[Example], title: str = "") -> tuple[list[Written], Floats]:
        """Return the answers to questions [E] and the confidence [E] in them.

        The examples' responses are ignored. With a title, it shows progress.
        """
        questions = self._asked(examples)
        found = self._decode(questions, self.settings.temperature, [0], title, self._head)
        answers = [Written(self._text(one.ids), one.probabilities) for [one] in found]
        return answers, self.settings.confidence.of(self, examples, answers)

    def texts(
        self, examples: Sequence[Example], temperature: float, numbers: Iterable[int]
    ) -> list[list[str]]:
        """Return each question's draws of these numbers."""
        found = self._decode(self._asked(examples), temperature, [*numbers])
        return [[self._text(one.ids) for one in of_question] for of_question in found]

    def choose(self, examples: Sequence[Example]) -> Floats:
        """Return the raw model's probabilities [E, C] of the choices."""
        questions = encode(examples, self.tokenizer, self.prompt)
        scores = score_questions(
            self.model, questions, self.batch_size, batch_tokens=self.batch_tokens
        )
        return np.asarray(scores.double().softmax(-1).numpy())

    def _asked(self, examples: Sequence[Example]) -> list[Question]:
        return open_questions(examples, self.tokenizer, self.prompt, self.settings.max_new_tokens)

    def _decode(
        self,
        questions: Sequence[Question],
        temperature: float,
        numbers: Sequence[int],
        title: str = "",
        head: ScoringHead | None = None,
    ) -> list[list[Text]]:
        draws = [
            Draw(question.prompt, temperature, number, self.seed)
            for question in questions
            for number in numbers
        ]
        longest, size, tokens = self.settings.max_new_tokens, self.batch_size, self.batch_tokens
        found = decode(self.model, draws, self._stop, longest, size, tokens, title, head)
        each = len(numbers)
        return [found[start : start + each] for start in range(0, len(found), each)]

    @cached_property
    def _head(self) -> ScoringHead:
        return ScoringHead(self.model, exact=True)

    @cached_property
    def _stop(self) -> frozenset[int]:
        return stop_tokens(self.model, self.tokenizer, self.prompt)

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text.strip()
