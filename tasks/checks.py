"""Check what the settings require of the data and the models, one chunk of data at a time."""

import logging
from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from firstkd.data.examples import Example
from firstkd.data.packing import packed_length
from firstkd.data.prompts import Question, encode
from firstkd.errors import about
from firstkd.models.folders import read_config, vocabulary_size
from firstkd.models.self_test import check_model, probes
from firstkd.open_text.asking import open_questions
from firstkd.settings import Settings
from firstkd.train.distributed import Ranks
from tasks.layout import learned_from, model_folder
from tasks.preflight import (
    MIN_DECIDED,
    check_adapting,
    check_averages,
    check_exports,
    check_layers,
    check_measured,
    check_own_text,
    check_shown,
    check_signals,
    check_terms,
    check_training,
    check_vocabulary,
)
from tasks.scores import drawn_with
from tasks.viewing import check_views

log = logging.getLogger(__name__)


class Checks:
    """Keeps only what the checks need of the questions: 4 bytes per question and model."""

    def __init__(self, root: Path, settings: Settings, tokenizers: Mapping[str, Any]) -> None:
        """Raises ConfigError for layers that do not exist, and for averages of models that were
        not trained from the same start; `tokenizers` are by model."""
        self._root, self._settings, self._tokenizers = root, settings, tokenizers
        self._configs = {name: read_config(model_folder(root, name)) for name in tokenizers}
        check_averages(settings)
        check_layers(
            settings,
            {name: config.num_hidden_layers for name, config in self._configs.items()},
            {name: config.hidden_size for name, config in self._configs.items()},
        )
        check_exports(settings, self._configs, tokenizers)
        check_own_text(settings)
        self._learned = {file.stem for file in learned_from(root, settings)}
        self._with_choices, self._open_text = set[str](), set[str]()
        self._probes: dict[str, list[Question]] = {name: [] for name in tokenizers}
        self._witnesses: dict[str, dict[str, Question]] = defaultdict(dict)
        self._lengths: dict[str, array[int]] = defaultdict(lambda: array("i"))
        self._decided: dict[str, set[str]] = defaultdict(set)

    def read(
        self, split: str, examples: Sequence[Example], uncut: Mapping[str, Sequence[Question]]
    ) -> None:
        """Read valid examples; `uncut` has them as questions of unlimited length, by model.

        Raises DataValidationError for a response or a system prompt that leaves no room for the
        question.
        """
        if any(example.choices for example in examples):
            self._with_choices.add(split)
        if any(not example.choices for example in examples):
            self._open_text.add(split)
        for root, tokenizer in self._tokenizers.items():
            with about(f"models.{root}"):
                questions = self._cut(examples, uncut[root], tokenizer)
                self._ask(root, split, examples)
            self._probes[root] = probes([*self._probes[root], *questions])
            if split in self._learned:
                self._learn(root, questions)
            if split == "calibration":
                self._recalibrate(root, examples, questions)

    def _cut(
        self, examples: Sequence[Example], uncut: Sequence[Question], tokenizer: Any
    ) -> list[Question]:
        """Tokenise again only the questions longer than prompt.max_length; most are not."""
        prompt = self._settings.prompt
        pairs = [*zip(examples, uncut, strict=True)]
        long = [example for example, question in pairs if question.length > prompt.max_length]
        again = iter(encode(long, tokenizer, prompt))
        return [next(again) if q.length > prompt.max_length else q for q in uncut]

    def _ask(self, root: str, split: str, examples: Sequence[Example]) -> None:
        """Encode open text as prompts for written answers, which leave the question less room."""
        settings, prompt = self._settings, self._settings.prompt
        lengths = []
        if split not in ("train", "unlabelled"):
            lengths.append(settings.evaluate.open_text.max_new_tokens)
        if split in self._learned:
            lengths += [
                model.on_policy.max_new_tokens
                for name, model in settings.models.items()
                if model.on_policy and settings.lineage.root(name) == root
            ]
        fitting = [length for length in lengths if length <= prompt.max_length // 2]
        if fitting:  # check_measured and the setting itself report lengths that do not fit
            open_text = [example for example in examples if not example.choices]
            open_questions(open_text, self._tokenizers[root], prompt, max(fitting))

    def _learn(self, root: str, questions: Sequence[Question]) -> None:
        """Note what the terms of models descended from `root` apply to, and the lengths."""
        for name, model in self._settings.models.items():
            if self._settings.lineage.root(name) != root:
                continue
            learners = [self._settings.models[peer] for peer in self._settings.lineage.peers(name)]
            signals = [self._settings.signals[of] for of in model.signals]
            for question in questions:
                for signal in signals:
                    question = signal.stand_in(question)
                counting = [n for n, term in (model.learn or {}).items() if term.count(question)]
                for term_name in counting:
                    self._witnesses[name].setdefault(term_name, question)
                if any(learner.learns_from(question) for learner in learners):
                    self._lengths[name].append(packed_length(question))

    def _recalibrate(
        self, root: str, examples: Sequence[Example], questions: Sequence[Question]
    ) -> None:
        """Note what the decisions to recalibrate signals on are drawn with, as far as needed."""
        lineage = self._settings.lineage
        for name, signal in lineage.recalibrated.items():
            if lineage.root(lineage.read_with(name)) == root:
                for example, question in zip(examples, questions, strict=True):
                    if len(self._decided[name]) < MIN_DECIDED and signal.decisions_of(question):
                        self._decided[name].add(drawn_with(example))

    def finish(self) -> None:
        """Raise ConfigError, DataValidationError or ArtifactError for unmet requirements."""
        settings = self._settings
        check_views(self._root, settings, self._tokenizers, self._configs)
        check_measured(settings, self._root / "data/prepare", self._with_choices, self._open_text)
        check_adapting(settings, self._with_choices)
        for name, model in settings.models.items():
            check_terms(name, model, [*self._witnesses[name].values()])
            check_training(settings, name, self._lengths[name])
        check_signals(settings, self._decided)
        for root, tokenizer in self._tokenizers.items():
            log.info("checking how the model “%s” is scored", root)
            folder = model_folder(self._root, root)
            with settings.machine.placement.running(folder, "fp32", Ranks()) as network:
                self._check(root, network, tokenizer)

    def _check(self, root: str, network: Any, tokenizer: Any) -> None:
        settings = self._settings
        with about(f"models.{root}"):
            check_model(network, tokenizer, self._probes[root])
        for name, model in settings.models.items():
            if settings.lineage.root(name) == root:
                with about(f"models.{name}"):
                    model.init.check(network)
        check_shown(settings, root, network)
        check_vocabulary(settings, root, vocabulary_size(network))
