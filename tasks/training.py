"""Train a model on its terms, or several together, which may also learn from one another.

Checkpoints are kept in data/.train/STAGE-DIGEST, where DVC does not look, and removed when the
stage is done. The digest covers all that decides the result, so that nothing else resumes there.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from firstkd.data.examples import Example, read_all
from firstkd.data.prompts import Question
from firstkd.files import atomic_folder, sha256_of, write_json, write_json_lines
from firstkd.models.folders import load_tokenizer, precision_here, save_model
from firstkd.models.init.base import Given
from firstkd.models.lora import add_lora
from firstkd.models.settings import ModelSettings
from firstkd.settings import Settings
from firstkd.train.distributed import Ranks, join_ranks
from firstkd.train.engine import deepspeed_config, load_to_train
from firstkd.train.loop import train
from firstkd.train.plan import training_plan
from tasks.beside import live_signals, make_player
from tasks.code import code_sha256
from tasks.layout import (
    log_folder,
    model_folder,
    prepared,
    recalibration_file,
    run_beside,
    signal_folder,
)
from tasks.matched import Matched
from tasks.preflight import check_terms
from tasks.said import as_said


def learn(root: Path, settings: Settings, names: Sequence[str], given: Given) -> None:
    """Train models from their starts, together if there are several, and write each to its folder
    with its curve."""
    ranks = join_ranks()
    models = {name: settings.models[name] for name in names}
    (section,) = {model.train for model in models.values()}
    assert section is not None
    training, machine = settings.train[section], settings.machine
    starts = {name: given.models[model.init.models[0]] for name, model in models.items()}
    # models that learn from one another share a tokenizer (tasks/beside.py checks it)
    tokenizer = load_tokenizer(starts[names[0]])
    examples, questions = material(settings, models, given, tokenizer)
    matched = Matched(root, settings, examples, questions, tokenizer)
    stored = {name: matched.of_terms(name) for name in names}
    if not ranks.is_first:
        disable_progress_bar()
    networks = {name: load_to_train(starts[name], training, machine, ranks) for name in names}
    tuned = [add_lora(network, training.lora) for network in networks.values() if training.lora]
    writes = None
    if models[names[0]].on_policy:  # only for a model that learns alone
        from tasks.own_text import own_text

        writes = own_text(settings, names[0], networks[names[0]], tokenizer, examples)
    rounds = None
    if any(model.adapts for model in models.values()):
        from tasks.rounds import calibration_rounds

        rounds = calibration_rounds(root, settings, training, tokenizer)
    # planned on whole questions, whatever a model needs, so that all models see the same batches
    sources = [example.source for example in examples]
    (order,) = {model.order for model in models.values()}
    whole = writes.at_their_longest(questions) if writes else questions
    plan = training_plan(whole, training, settings.runtime.seed, sources, order)
    if not any(needs_choices(settings, model) for model in models.values()):
        questions = [question.gold_only() for question in questions]
    stage = f"model-{'-'.join(names)}"
    inputs = [*starts.values(), *given.examples]
    inputs += [path for name in names for path in inputs_of(root, settings, name)]
    checkpoints = checkpoint_folder(root, stage, decided_by(settings, models), inputs, ranks)
    player = make_player(root, settings, networks, stored, tokenizer, training.precision)
    for name, model in models.items():
        model.init.begin_training(player.scorer_of(name))
    logs = log_folder(root, stage)
    live_curve = logs / "curve.jsonl"
    between = checkpoints, writes, rounds
    curve = train(player, questions, plan, training, machine, live_curve, *between)
    if not ranks.is_first:
        return
    if training.lora:
        networks = {n: lora.merge_and_unload() for n, lora in zip(names, tuned, strict=True)}
    for name, network in networks.items():
        models[name].init.end_training(player.scorer_of(name))
        with atomic_folder(model_folder(root, name)) as folder:
            save_model(network, tokenizer, folder)
            write_json_lines(folder / "training.jsonl", player.curve_of(name, curve))
    # depends on this machine, so it is logged and not an output
    write_json(logs / "deepspeed.json", deepspeed_config(training, machine, ranks.world_size))
    shutil.rmtree(checkpoints, ignore_errors=True)  # there may be none


def material(
    settings: Settings, models: Mapping[str, ModelSettings], given: Given, tokenizer: Any
) -> tuple[list[Example], list[Question]]:
    """Return the examples that any of the models learns from, and their tokenised questions."""
    examples = read_all(given.examples)
    for model in models.values():
        if model.leave_out:
            examples = [example for example in examples if model.leave_out.keeps(example)]
        if model.keep:
            from tasks.chosen import chosen

            examples = chosen(given.project, model.keep, examples)
    questions = as_said(given.project, settings, models, examples, tokenizer)
    for name, model in models.items():
        check_terms(name, model, questions)
    learners = models.values()
    useful = [i for i, q in enumerate(questions) if any(m.learns_from(q) for m in learners)]
    return [examples[i] for i in useful], [questions[i] for i in useful]


def needs_choices(settings: Settings, model: ModelSettings) -> bool:
    """Whether its terms compare choices, or learn from stored states of whole questions."""
    signals = [settings.signals[name] for name in model.signals]
    return model.needs.choices or any(s.needs.choices for s in signals if not s.is_live)


def decided_by(settings: Settings, models: Mapping[str, ModelSettings]) -> list[Any]:
    """Return the settings that decide the result of a training."""
    (section,) = {model.train for model in models.values()}
    training = settings.train[str(section)]
    parts = [*models.values(), training, settings.prompt, settings.runtime]
    parts += [signal for name in models for _, signal in live_signals(settings, name).values()]
    precision = {"precision": precision_here(training.precision)}
    return [*(part.model_dump() for part in parts), precision]


def inputs_of(root: Path, settings: Settings, name: str) -> Iterable[Path]:
    """Yield the other files and folders that decide a model's training, such as its signals."""
    if settings.models[name].adapts:
        yield prepared(root, "calibration")
    if keep := settings.models[name].keep:
        yield from (signal_folder(root, of, "train") for of in keep.signals)
    for term in (settings.models[name].learn or {}).values():
        if term.signal is None or term.recalibration is None:
            continue
        if term.signal in settings.lineage.stored:
            yield signal_folder(root, term.signal, "train")
            if term.signal not in settings.lineage.recalibrated:
                continue
            yield recalibration_file(root, term.signal, term.recalibration)
        else:
            yield from run_beside(root, settings, name, term.signal)


def checkpoint_folder(
    root: Path, stage: str, made_from: Any, inputs: Sequence[Path], ranks: Ranks
) -> Path:
    """Return the folder for checkpoints of exactly this training, and drop the stage's others."""

    def folder() -> Path:
        hashes = {str(path): sha256_of(path) for path in inputs}
        text = json.dumps([made_from, hashes, code_sha256()], sort_keys=True)
        own = place / f"{stage}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        for stale in set(place.glob(f"{stage}-*")) - {own}:
            shutil.rmtree(stale)
        return own

    place = root / "data/.train"
    return ranks.from_first(folder)
