"""A student at work: questions in, answers with honest confidence out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from firstkd.open_text.calibration import Calibration
from firstkd.open_text.settings import OpenTextSettings
from firstkd.open_text.writer import Writer
from firstkd.serving.promise import Threshold
from firstkd.serving.reference import Reference
from firstkd.words import counted


@dataclass(frozen=True)
class Answer:
    answer: str
    confidence: float
    """Calibrated probability that the answer is right."""
    probabilities: list[float]
    """One per choice; empty if the answer is in the student's own words."""
    threshold: Threshold
    """The threshold that the confidence is compared with."""

    @property
    def abstain(self) -> bool:
        """Whether the confidence is too low to answer."""
        below = self.threshold.abstain_below
        return below is not None and self.confidence < below


@dataclass(frozen=True)
class OwnWords:
    """How a student answers questions without choices."""

    writer: Writer
    calibration: Calibration
    threshold: Threshold

    @classmethod
    def of(cls, answerer: "Answerer", kept: Mapping[str, Any], abstain_below: float | None) -> Self:
        settings = OpenTextSettings.model_validate(kept["settings"])
        return cls(
            Writer(answerer.model, answerer.tokenizer, answerer.prompt, settings, kept["seed"]),
            Calibration.from_json(kept["calibration"]),
            Threshold.of(kept, abstain_below),
        )

    def answer(self, examples: Sequence[Example], batch_size: int) -> list[Answer]:
        writer = replace(self.writer, batch_size=batch_size)
        answers, confidence = writer.answer(examples)
        return [
            Answer(answer.text, sure, [], self.threshold)
            for answer, sure in zip(answers, self.calibration(confidence).tolist(), strict=True)
        ]


@dataclass(frozen=True)
class Answerer:
    """A model, what was fitted to it, and the prompt it was trained with."""

    model: PreTrainedModel
    tokenizer: Any
    prompt: PromptSettings
    temperature: float | None
    """Temperature of its choices; None if it was calibrated on open text alone."""
    common_choices: Sequence[str] | None = None
    """Default choices of a question: those that all calibration questions share, if any."""
    threshold: Threshold = field(default_factory=Threshold)
    """The threshold for choices."""
    own_words: OwnWords | None = None
    """Answers questions without choices; None if it was not calibrated on open text."""
    reference: Reference | None = None
    """What its calibration questions with choices were like; None in files of earlier releases."""

    @classmethod
    def load(
        cls, model_folder: Path, calibration_file: Path, abstain_below: float | None = None
    ) -> Self:
        """Open a model folder and the calibration.json that `evaluate` wrote for it.

        A number for `abstain_below` replaces the threshold stored there.
        """
        calibration = read_json(calibration_file)
        reference = calibration.get("reference")
        chooser = cls(
            model=load_model(model_folder),
            tokenizer=load_tokenizer(model_folder),
            prompt=PromptSettings.model_validate(calibration["prompt"]),
            temperature=calibration["temperature"],
            common_choices=calibration.get("choices"),
            threshold=Threshold.of(calibration, abstain_below),
            reference=Reference(**reference) if reference else None,
        )
        words = calibration.get("open_text")
        if words is None:
            return chooser
        return replace(chooser, own_words=OwnWords.of(chooser, words, abstain_below))

    @property
    def thresholds(self) -> list[Threshold]:
        """The thresholds in force: for choices and for open text, if it was calibrated on them."""
        found = [self.threshold] if self.temperature is not None else []
        return [*found, *([self.own_words.threshold] if self.own_words else [])]

    def answer(
        self,
        questions: Sequence[object],
        choices: Sequence[object],
        batch_size: int = 32,
    ) -> list[Answer]:
        """Answer each question with one of its choices.

        Choices of None mean `common_choices` or else an answer in the student's own words.

        Raises DataValidationError as `examples` does.
        """
        return self.answer_examples(self.examples(questions, choices), batch_size)

    def examples(self, questions: Sequence[object], choices: Sequence[object]) -> list[Example]:
        """Return the questions as they will be answered.

        Raises DataValidationError naming the first question that is not a text, whose choices are
        not a list of two or more texts, or that names none and needs some.
        """
        return [
            self._example(number, question, named)
            for number, (question, named) in enumerate(zip(questions, choices, strict=True), 1)
        ]

    def answer_examples(self, examples: Sequence[Example], batch_size: int = 32) -> list[Answer]:
        """Answer examples with and without choices together.

        Raises DataValidationError for a kind that the student was not calibrated on.
        """
        by_kind = {
            kind: [i for i, example in enumerate(examples) if bool(example.choices) == kind]
            for kind in (True, False)
        }
        found: dict[int, Answer] = {}
        if chosen := by_kind[True]:
            answers = self._choose([examples[i] for i in chosen], batch_size)
            found |= dict(zip(chosen, answers, strict=True))
        if written := by_kind[False]:
            if self.own_words is None:
                raise DataValidationError("this student was not calibrated on open text")
            answers = self.own_words.answer([examples[i] for i in written], batch_size)
            found |= dict(zip(written, answers, strict=True))
        return [found[i] for i in range(len(examples))]

    def _choose(self, examples: Sequence[Example], batch_size: int) -> list[Answer]:
        if self.temperature is None:
            raise DataValidationError(
                "this student was calibrated on open text alone: leave out the choices"
            )
        encoded = encode(examples, self.tokenizer, self.prompt)
        scores = score_questions(self.model, encoded, batch_size)
        probabilities = (scores.double() / self.temperature).softmax(-1)  # as evaluate does
        confidence, best = probabilities.max(-1)
        return [
            Answer(
                answer=(example.choices or ())[index],
                confidence=certain,
                probabilities=row[: len(example.choices or ())],
                threshold=self.threshold,
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
            if self.own_words is None:
                raise DataValidationError(
                    f"{where} has no choices, and this student's calibration questions do not "
                    "share a common set: give two or more"
                )
            return Example(prompt, prompt, "", None, None, "")
        # a str is a sequence too, of characters
        if not isinstance(options, list | tuple):
            raise DataValidationError(f"{where}: choices must be a list of texts, not {options!r}")
        if len(options) < 2:
            found = counted(len(options), "choice")
            raise DataValidationError(f"{where} has {found}; at least 2 are needed")
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
