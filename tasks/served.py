"""Ask a model behind a server for a signal, and count what that costs."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from firstkd.data.view import Viewer
from firstkd.errors import ArtifactError, about
from firstkd.files import read_json
from firstkd.models.folders import load_tokenizer, tokenizer_ids
from firstkd.models.init.server import ServerInit
from firstkd.openai.gifts import SERVER, what_it_gives
from firstkd.openai.teacher import ServedModel
from firstkd.settings import Settings
from firstkd.signals.asked import AskedTeacher
from firstkd.signals.base import CapturedSignal
from firstkd.signals.capture import AskedCapture
from firstkd.train.distributed import Ranks
from tasks.layout import log_folder, model_folder
from tasks.usage import UsageLog

log = logging.getLogger(__name__)


@contextmanager
def opened(
    root: Path, settings: Settings, of: str, share: int, viewer: Viewer | None = None
) -> Iterator[AskedTeacher]:
    """Open a model behind a server that `share` processes query, by default without a view.

    Raises ConfigError, SourceError or UnreachableError if the server does not give what is
    requested, and ArtifactError if that has changed since the model's folder was made.
    """
    init, folder = cast("ServerInit", settings.models[of].init), model_folder(root, of)
    tokenizer, size = load_tokenizer(folder), tokenizer_ids(folder)
    assert size is not None
    with about(f"models.{of}.init"), ServedModel(init, tokenizer, share) as served:
        gives = what_it_gives(served)
        if gives != (found := read_json(folder / SERVER)["gives"]):
            raise ArtifactError(
                f"{init.url} now gives {gives}, but gave {found} when {folder} was made; change "
                "the fingerprint if it serves other weights, or rerun the stage that made it"
            )
        yield AskedTeacher(served, gives, size, viewer or Viewer(settings.prompt))


def ask(
    root: Path,
    settings: Settings,
    signal: CapturedSignal,
    viewer: Viewer,
    splits: dict[str, list[Path]],
    partial: Path,
    ranks: Ranks,
) -> AskedCapture:
    """Write the shards of all splits to `partial`; raises as `opened` does."""
    (of,) = signal.models
    name = partial.name.rpartition("-")[0]
    with opened(root, settings, of, ranks.world_size, viewer) as teacher:
        served = teacher.served
        usage = UsageLog(log_folder(root, f"signal-{name}"), partial, served.init)
        ranks.barrier()  # before anything is counted
        run = AskedCapture(signal, teacher.vocabulary_size, settings.capture, ranks)
        for split, files in splits.items():
            for first, examples in run.parts(files):
                questions = viewer.encode(examples, served.tokenizer, signal.has_token_ids)
                after = usage.adding(served)
                run.write(teacher, examples, questions, partial / split, after, first=first)
    if ranks.is_first:
        log.info("signals.%s: %s", name, usage.in_words())
    return run
