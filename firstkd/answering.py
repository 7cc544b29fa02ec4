"""A student at work: questions in, answers with honest confidence out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from transformers import PreTrainedModel

from firstkd.data.examples import Example
from firstkd.data.prompts import encode
from firstkd.data.settings import PromptSettings
from firstkd.data.text import clean
from firstkd.errors import DataValidationError
from firstkd.files import read_json
from firstkd.models.folders import load_model, load_tokenizer
from firstkd.models.scoring import score_questions
from firstkd.serving.promise import Promise
from firstkd.serving.reference import Reference


@dataclass(frozen=True)
class Answer:
    answer: str
    answer_index: int
    confidence: float
    """Calibrated probability that the answer is right."""
    probabilities: list[float]
    """One for each choice."""
    abstain: bool
    """Whether the confidence is too low to answer."""


@dataclass(frozen=True)
class Answerer:
    """A model with the temperature that was fitted to it, and the prompt it was trained with."""

    model: PreTrainedModel
    tokenizer: Any
    prompt: PromptSettings
    temperature: float
    common_choices: Sequence[str] | None = None
    """Choices of a question that names none: what all calibration questions share, if they do."""
    abstain_below: float | None = None
    promise: Promise | None = None
    """What `abstain_below` keeps, if it comes from a policy."""
    reference: Reference | None = None
    """What its calibration questions were like; None for a version of an earlier release."""

    @classmethod
    def load(
        cls, model_folder: Path, calibration_file: Path, abstain_below: float | None = None
    ) -> Self:
        """Open a model folder and the calibration.json that `evaluate` wrote for it.

        A number for `abstain_below` takes the place of the threshold that was found there.
        """
        calibration = read_json(calibration_file)
        kept = calibration.get("policy") if abstain_below is None else None
        promise = Promise(**kept) if kept else None
        reference = calibration.get("reference")
        return cls(
            model=load_model(model_folder),
            tokenizer=load_tokenizer(model_folder),
            prompt=PromptSettings.model_validate(calibration["prompt"]),
            temperature=calibration["temperature"],
            common_choices=calibration.get("choices"),
            abstain_below=promise.abstain_below if promise else abstain_below,
            promise=promise,
            reference=Reference(**reference) if reference else None,
        )

    def answer(
        self,
        questions: Sequence[object],
        choices: Sequence[object],
        batch_size: int = 32,
    ) -> list[Answer]:
        """Answer each question with one of its choices, None standing for `common_choices`.

        Raises DataValidationError as `examples` does.
        """
        return self.answer_examples(self.examples(questions, choices), batch_size)

    def examples(self, questions: Sequence[object], choices: Sequence[object]) -> list[Example]:
        """Return the questions as they will be answered.

        Raises DataValidationError naming the first question that is not a text, or that does not
        have a list of two or more choices, each of them a text.
        """
        return [
            self._example(number, question, named)
            for number, (question, named) in enumerate(zip(questions, choices, strict=True), 1)
        ]

    def answer_examples(self, examples: Sequence[Example], batch_size: int = 32) -> list[Answer]:
        encoded = encode(examples, self.tokenizer, self.prompt)
        scores = score_questions(self.model, encoded, batch_size)
        probabilities = (scores.double() / self.temperature).softmax(-1)  # as evaluate does
        confidence, best = probabilities.max(-1)
        return [
            Answer(
                answer=(example.choices or ())[index],
                answer_index=index,
                confidence=certain,
                probabilities=row[: len(example.choices or ())],
                abstain=self.abstain_below is not None and certain < self.abstain_below,
            )
            for example, index, certain, row in zip(
                examples, best.tolist(), confidence.tolist(), probabilities.tolist(), strict=True
            )
        ]

    def _example(self, number: int, question: object, named: object) -> Example:
        where = f"question {number}"
        prompt = _text(question, where, "the question")
        where = f"{where} ({prompt!r})"
        options = self.common_choices if named is None else named
        if options is None:
            raise DataValidationError(
                f"{where} names no choices, and those of this student's calibration questions "
                "differ: name two or more"
            )
        # a text is a sequence too, of its characters
        if not isinstance(options, list | tuple):
            raise DataValidationError(f"{where}: choices must be a list of texts, not {options!r}")
        if len(options) < 2:
            raise DataValidationError(f"{where} has {len(options)} choices; at least 2 are needed")
        texts = [_text(option, where, f"choice {i}") for i, option in enumerate(options, 1)]
        return Example(prompt, prompt, "", tuple(texts), None, "")


def _text(value: object, where: str, what: str) -> str:
    if not isinstance(value, str):
        raise DataValidationError(f"{where}: {what} must be text, not {value!r}")
    try:
        text = clean(value)
    except ValueError as error:
        raise DataValidationError(f"{where}: {what} holds {error}") from error
    if not text:
        raise DataValidationError(f"{where}: {what} is empty")
    return text
