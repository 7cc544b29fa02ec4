"""What signals' models read more than the student, and whether it fits."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from firstkd.data.examples import example_chunks
from firstkd.data.view import Shots, Viewer
from firstkd.errors import ConfigError, about
from firstkd.settings import Settings
from firstkd.signals.base import CapturedSignal
from tasks.layout import prepared

log = logging.getLogger(__name__)

LOOKED_AT = 256
"""Training questions whose length with a view is looked at before anything is captured."""
UNLIMITED = 2**31


def viewer_of(root: Path, settings: Settings, signal: CapturedSignal) -> Viewer:
    """Return what puts examples to the signal's model."""
    shots = Shots(signal.view.shots)
    if shots.count:
        for examples in example_chunks(prepared(root, "train")):
            shots.add(examples)
    return Viewer(settings.prompt, signal.view, shots)


def check_views(root: Path, settings: Settings, tokenizers: Mapping[str, Any]) -> None:
    """Raise ConfigError for a context that no data set has; warn of views that do not fit.

    `tokenizers` are by the models that were made elsewhere.
    """
    for name, signal in settings.signals.items():
        if not isinstance(signal, CapturedSignal) or signal.view.is_plain:
            continue
        datasets = settings.fetch.datasets.values()
        if signal.view.context and not any(each.columns.context for each in datasets):
            raise ConfigError(
                f"params.yaml: signals.{name}.view.context: true, but no data set has one; name "
                "its column as fetch.datasets.NAME.columns.context"
            )
        viewer = viewer_of(root, settings, signal)
        limit = signal.view.max_length or settings.prompt.max_length
        whole = replace(viewer, view=signal.view.model_copy(update={"max_length": UNLIMITED}))
        train = chain.from_iterable(example_chunks(prepared(root, "train")))
        with about(f"signals.{name}"):
            tokenizer = tokenizers[settings.lineage.root(signal.of)]
            questions = whole.encode([*islice(train, LOOKED_AT)], tokenizer)
        lengths = [len(q.prompt) + max(map(len, q.responses), default=0) for q in questions]
        if cut := sum(length > limit for length in lengths):
            log.warning(
                "signals.%s.view: with what it shows, %d of %d training questions are longer than "
                "%d tokens (up to %d) and lose solved questions, then their start; raise "
                "signals.%s.view.max_length",
                *(name, cut, len(lengths), limit, max(lengths), name),
            )
