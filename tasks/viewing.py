"""What the models of signals read beyond what the student reads, and whether it fits."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from firstkd.data.examples import example_chunks
from firstkd.data.prompts import Question
from firstkd.data.view import Shots, Viewer
from firstkd.errors import ConfigError, about
from firstkd.settings import Settings
from firstkd.signals.base import CapturedSignal
from tasks.layout import learned_from, prepared

log = logging.getLogger(__name__)

LOOKED_AT = 256
"""Questions per file that are looked at for a view before anything is captured."""
UNLIMITED = 2**31


def viewer_of(root: Path, settings: Settings, signal: CapturedSignal) -> Viewer:
    """Return the viewer that puts examples to the signal's model."""
    shots = Shots(signal.view.shots)
    if shots.count:
        for examples in example_chunks(prepared(root, "train")):
            shots.add(examples)
    return Viewer(settings.prompt, signal.view, shots)


def check_views(
    root: Path, settings: Settings, tokenizers: Mapping[str, Any], configs: Mapping[str, Any]
) -> None:
    """Check what the models of signals would read, on the first training and calibration questions.

    Raises ConfigError for a context that no data set has, for more tokens than a model can read
    and for responses that the tokenizer would split differently, and DataValidationError if no
    room is left for a question; warns of solved questions that do not fit. `tokenizers` and
    `configs` are those of the models that were made elsewhere.
    """
    for name, signal in settings.signals.items():
        if not isinstance(signal, CapturedSignal) or signal.view.is_plain:
            continue
        datasets = settings.fetch.datasets.values()
        if signal.view.context and not any(each.columns.context for each in datasets):
            raise ConfigError(
                f"params.yaml: signals.{name}.view.context: true, but no data set has one; set "
                "fetch.datasets.NAME.columns.context to its column"
            )
        of = settings.lineage.root(signal.of)
        with about(f"signals.{name}.view"):
            most = getattr(configs[of], "max_position_embeddings", None)
            if settings.models[signal.of].init.is_served:
                most = None  # nobody says what a server reads
            longest = _check_view(root, settings, name, signal, tokenizers[of], most)
        if most and longest > most:
            raise ConfigError(
                f"params.yaml: signals.{name}.view: with what it shows, questions have up to "
                f"{longest} tokens, but {signal.of} reads at most {most}; set max_length: {most}"
            )


def _check_view(
    root: Path,
    settings: Settings,
    name: str,
    signal: CapturedSignal,
    tokenizer: Any,
    most: int | None,
) -> int:
    """Return the length of the longest question as the signal's model reads it: of those that are
    looked at, or of all of them if one could exceed `most`, the model's positions."""
    viewer = viewer_of(root, settings, signal)
    files = [prepared(root, "calibration"), *learned_from(root, settings)]
    looked_at = [
        example
        for file in files[:2]
        for example in islice(chain.from_iterable(example_chunks(file)), LOOKED_AT)
    ]
    limit = signal.view.max_length or settings.prompt.max_length
    fits = most is None or limit <= most
    shown = [
        max(map(_length, viewer.encode(examples, tokenizer, signal.has_token_ids)), default=0)
        for examples in ([looked_at] if fits else chain.from_iterable(map(example_chunks, files)))
    ]
    unlimited = replace(viewer, view=signal.view.model_copy(update={"max_length": UNLIMITED}))
    whole = [*map(_length, unlimited.encode(looked_at, tokenizer))]
    if cut := sum(length > limit for length in whole):
        log.warning(
            "signals.%s.view: with what it shows, %d of %d questions are longer than %d tokens (up "
            "to %d) and lose solved questions or, if they have none, their start; raise max_length",
            *(name, cut, len(whole), limit, max(whole)),
        )
    return max(shown, default=0)


def _length(question: Question) -> int:
    return len(question.prompt) + max(map(len, question.responses), default=0)
