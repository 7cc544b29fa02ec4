"""What signals ask of a model behind a server."""

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from firstkd.data.examples import Example
from firstkd.data.prompts import Question
from firstkd.data.rendering import letter_question
from firstkd.data.view import Viewer
from firstkd.openai.answers import Answer, answer_in, answer_request
from firstkd.openai.letters import letter_logprobs, letter_request
from firstkd.openai.prompt_scores import Scored, score_request, scores_in
from firstkd.openai.teacher import ServedModel
from firstkd.signals.top_k import Position

FEW_LETTERS = 0.5
"""Mean probability of all letters below which a model counts as not answering by letter."""

log = logging.getLogger(__name__)


class AskedTeacher:
    def __init__(
        self,
        served: ServedModel,
        gives: Mapping[str, Any],
        vocabulary_size: int,
        viewer: Viewer,
    ) -> None:
        """`gives` is what the server was found to offer."""
        self.served, self.gives, self.vocabulary_size = served, gives, vocabulary_size
        self.viewer, self.prompt = viewer, viewer.prompt

    def choices(self, examples: Sequence[Example], questions: Sequence[Question]) -> Tensor:
        """Return log-probabilities [B, C] of each question's choices, −inf where it has none."""
        pairs = [*zip(examples, questions, strict=True)]
        deciding = [i for i, (_, question) in enumerate(pairs) if len(question.responses) > 1]
        if "letters" in self.gives:
            answers = self.served.ask_all([self._letters(examples[i]) for i in deciding])
            found = [logprobs for logprobs, _ in answers]
            self._warn_of_prose([mass for _, mass in answers])
        else:
            found = self.served.ask_all([self._texts(questions[i]) for i in deciding])
        width = max(map(len, found), default=1)
        logprobs_BC = torch.full((len(questions), width), -torch.inf)
        for i, scores in zip(deciding, found, strict=True):
            logprobs_BC[i, : len(scores)] = torch.tensor(scores).log_softmax(-1)
        return logprobs_BC

    def positions(self, questions: Sequence[Question], top: int) -> list[tuple[Position, int]]:
        """Return, per token of right responses, the most probable tokens and the token itself."""
        answered = [q.gold_only() for q in questions if q.gold is not None]
        found = self.served.ask_all([self._scores(question, top) for question in answered])
        return [
            (position, token)
            for question, (scored,) in zip(answered, found, strict=True)
            for token, (_, position) in zip(question.responses[0], scored, strict=True)
        ]

    async def _letters(self, example: Example) -> tuple[list[float], float]:
        shown = self.viewer.shown(example, asks="letter")
        text, letters = letter_question(shown)
        request = letter_request(self.served.init.model, self._turns(shown, text))

        def read(reply: Any) -> tuple[list[float], float]:
            return letter_logprobs(reply, letters)

        return await self.served.ask("chat/completions", request, read, example.id)

    def answers(self, examples: Sequence[Example], max_tokens: int, top: int) -> list[Answer]:
        """Return the server's answer to each prompt, with the top tokens along the way."""
        return self.served.ask_all([self._answer(e, max_tokens, top) for e in examples])

    async def _answer(self, example: Example, max_tokens: int, top: int) -> Answer:
        shown = self.viewer.shown(example)
        turns = self._turns(shown, shown.prompt)
        request = answer_request(self.served.init.model, turns, max_tokens, top)
        return await self.served.ask("chat/completions", request, answer_in, example.id)

    def _turns(self, example: Example, text: str) -> list[dict[str, str]]:
        """Return a conversation that ends with the user's text."""
        turns = [{"role": t.role, "content": t.content} for t in example.history or ()]
        system = self.prompt.chat.system if self.prompt.chat else None
        if system and not any(turn["role"] == "system" for turn in turns):
            turns.insert(0, {"role": "system", "content": system})
        return [*turns, {"role": "user", "content": text}]

    async def _texts(self, question: Question) -> list[float]:
        """Return the mean log-probability of each choice's tokens."""
        return [fmean(own for own, _ in scored) for scored in await self._scores(question, 1)]

    async def _scores(self, question: Question, top: int) -> list[list[Scored]]:
        """Return the scores of each response's tokens."""
        prompts = [[*question.prompt, *response] for response in question.responses]
        way = self.gives["texts"]
        request = score_request(self.served.init.model, prompts, way, top)

        def read(reply: Any) -> list[list[Scored]]:
            scores = scores_in(reply, prompts, way, self.ids if way == "echo" else {})
            return [each[len(question.prompt) - 1 :] for each in scores]

        return await self.served.ask("completions", request, read, question.id)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Token ids by text, for tokens whose text is unique."""
        texts = self.served.tokenizer.batch_decode([[i] for i in range(self.vocabulary_size)])
        counted: dict[str, list[int]] = {}
        for i, text in enumerate(texts):
            counted.setdefault(text, []).append(i)
        return {text: ids[0] for text, ids in counted.items() if len(ids) == 1}

    def _warn_of_prose(self, masses: Sequence[float]) -> None:
        if masses and (held := fmean(masses)) < FEW_LETTERS:
            log.warning(
                "%s: letters get only %.1f %% of %s's probability; it does not answer by letter, "
                "so these probabilities mean little",
                *(self.served.init.url, 100 * held, self.served.init.model),
            )
