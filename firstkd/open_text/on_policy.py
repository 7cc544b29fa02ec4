"""On-policy text: a student learns from responses that it writes itself (GKD).

Agarwal et al. 2024, arXiv 2306.13649, algorithm 1. What the student writes replaces the right
response; the teacher, in the loop, says what it would have written at each token. No gradient flows
through the writing.

None of it needs saving: the text follows from the weights, the seed and the number of the
micro-batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from firstkd.data.examples import unit_hash
from firstkd.data.prompts import Question
from firstkd.open_text.decoding import Draw, decode
from firstkd.open_text.settings import OnPolicy


@dataclass(frozen=True)
class OwnText:
    settings: OnPolicy
    model: PreTrainedModel
    prompts: Mapping[int, list[int]]
    """What the student answers, by question number; open text only."""
    stop: frozenset[int]
    """Tokens that end an answer."""
    seed: int
    batch_size: int
    batch_tokens: int

    def at_their_longest(self, questions: Sequence[Question]) -> list[Question]:
        """Return stand-ins for the questions, as long as any answer could make them."""
        return [
            replace(q, prompt=max(q.prompt, self.prompts[i], key=len), responses=[self._room(q)])
            if i in self.prompts
            else q
            for i, q in enumerate(questions)
        ]

    def _room(self, question: Question) -> list[int]:
        return [0] * max(self.settings.max_new_tokens, *map(len, question.responses), 0)

    def writes_in(self, number: int) -> bool:
        """Whether the micro-batch of this number belongs to the share."""
        return unit_hash(f"{self.seed}/{number}") < self.settings.share

    def asked(self, questions: Mapping[int, Question], number: int) -> list[int]:
        """Return the numbers of a micro-batch's questions that the student answers."""
        open_text = [i for i in questions if i in self.prompts]
        writes = self.writes_in(number)
        return [i for i in open_text if writes or not questions[i].responses]

    def in_batch(self, questions: Mapping[int, Question], number: int) -> Mapping[int, Question]:
        """Return a micro-batch's questions, by their numbers, with the student's responses.

        In a share of the micro-batches it writes all responses to open text; in the others, only
        those that nobody else has written.
        """
        asked = self.asked(questions, number)
        if not asked:
            return questions
        written = zip(asked, self._written(asked, number), strict=True)
        return {
            **questions,
            **{
                i: replace(questions[i], prompt=self.prompts[i], responses=[ids], gold=0)
                for i, ids in written
            },
        }

    def _written(self, asked: Sequence[int], number: int) -> list[list[int]]:
        temperature, longest = self.settings.temperature, self.settings.max_new_tokens
        draws = [Draw(self.prompts[i], temperature, number, self.seed) for i in asked]
        learns = self.model.training
        self.model.eval()  # no dropout, and the KV cache, which gradient checkpointing rules out
        try:
            texts = decode(
                self.model, draws, self.stop, longest, self.batch_size, self.batch_tokens
            )
        finally:
            self.model.train(learns)
        return [text.ids for text in texts]
