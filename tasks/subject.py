"""A model that is being measured, run by torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from transformers import PreTrainedModel

from firstkd.data.examples import Example
from firstkd.data.prompts import encode
from firstkd.data.settings import PromptSettings
from firstkd.measure.settings import EvaluateSettings
from firstkd.models.folders import load_model, load_tokenizer
from firstkd.models.scoring import TokenScores, score_questions, score_tokens
from firstkd.open_text.settings import OpenTextSettings
from firstkd.open_text.writer import Writer
from tasks.scores import Scored


@dataclass(frozen=True)
class Subject:
    name: str
    network: PreTrainedModel
    tokenizer: Any
    prompt: PromptSettings
    settings: EvaluateSettings

    @classmethod
    def load(
        cls, name: str, folder: Path, prompt: PromptSettings, settings: EvaluateSettings
    ) -> Self:
        return cls(name, load_model(folder), load_tokenizer(folder), prompt, settings)

    def score(self, examples: Sequence[Example], title: str) -> Scored:
        """Score the choices of questions."""
        questions = encode(examples, self.tokenizer, self.prompt)
        size, tokens = self.settings.micro_batch_size, self.settings.micro_batch_tokens
        return Scored.of(
            examples,
            score_questions(self.network, questions, size, title, tokens),
            by_one_token=all(len(r) == 1 for q in questions for r in q.responses),
        )

    def score_tokens(self, examples: Sequence[Example], title: str) -> TokenScores:
        """Score every token of the right responses, given those before it."""
        questions = encode(examples, self.tokenizer, self.prompt)
        size, tokens = self.settings.micro_batch_size, self.settings.micro_batch_tokens
        return score_tokens(self.network, questions, size, title, tokens)

    def writer(self, settings: OpenTextSettings, seed: int) -> Writer:
        size, tokens = self.settings.micro_batch_size, self.settings.micro_batch_tokens
        return Writer(
            self.network, self.tokenizer, self.prompt, settings, seed, size, batch_tokens=tokens
        )
