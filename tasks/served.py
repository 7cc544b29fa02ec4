"""Ask a model behind a server for a signal, and count what that costs.

What was asked is logged in logs/signal-NAME/usage.jsonl, a line a shard, also of interrupted runs.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import cast

from firstkd.data.examples import read_all
from firstkd.data.prompts import encode
from firstkd.errors import ArtifactError, about
from firstkd.files import read_json, read_json_lines
from firstkd.models.folders import load_tokenizer, tokenizer_ids
from firstkd.models.init.server import ServerInit
from firstkd.openai.gifts import SERVER, what_it_gives
from firstkd.openai.teacher import ServedModel, Usage
from firstkd.settings import Settings
from firstkd.signals.asked import AskedTeacher
from firstkd.signals.base import CapturedSignal
from firstkd.signals.capture import AskedCapture
from firstkd.train.distributed import Ranks
from tasks.layout import log_folder, model_folder

log = logging.getLogger(__name__)


def ask(
    root: Path,
    settings: Settings,
    signal: CapturedSignal,
    splits: dict[str, list[Path]],
    partial: Path,
    ranks: Ranks,
) -> AskedCapture:
    """Write the shards of all splits to `partial`.

    Raises ConfigError, SourceError or UnreachableError if the server does not give them.
    """
    (of,) = signal.models
    init, folder = cast("ServerInit", settings.models[of].init), model_folder(root, of)
    tokenizer, size = load_tokenizer(folder), tokenizer_ids(folder)
    assert size is not None
    system = settings.prompt.chat.system if settings.prompt.chat else None
    run = AskedCapture(signal, size, settings.capture, ranks)
    name = partial.name.rpartition("-")[0]
    usage = UsageLog(log_folder(root, f"signal-{name}") / "usage.jsonl", partial.name)
    with about(f"models.{of}.init"), ServedModel(init, tokenizer, ranks.world_size) as served:
        gives = what_it_gives(served)
        if gives != (found := read_json(folder / SERVER)["gives"]):
            raise ArtifactError(
                f"{init.url} gives {gives} now, and gave {found} when {folder} was made; change "
                "the fingerprint if it serves other weights, or run that stage again"
            )
        teacher = AskedTeacher(served, gives, size, system)
        for split, files in splits.items():
            examples = read_all(files)
            questions = encode(examples, tokenizer, settings.prompt)
            run.write(teacher, examples, questions, partial / split, usage.adding(served))
    if ranks.is_first:
        log.info("signals.%s: %s", name, usage.in_words(init))
    return run


class UsageLog:
    """What a signal has cost so far, in this run and in those that were interrupted."""

    def __init__(self, path: Path, of: str) -> None:
        self._path, self._of = path, of
        path.parent.mkdir(parents=True, exist_ok=True)

    def adding(self, served: ServedModel) -> Callable[[], None]:
        """Return what adds to the log all that was asked since it was last called."""

        def add() -> None:
            line = json.dumps({"signal": self._of, **vars(served.usage)})
            served.usage = Usage()
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

        return add

    def in_words(self, init: ServerInit) -> str:
        total = Usage()
        for line in read_json_lines(self._path) if self._path.exists() else []:
            if line.pop("signal") == self._of:
                total += Usage(**line)
        words = (
            f"{total.requests:,} requests and {total.retries:,} retries, {total.prompt_tokens:,} "
            f"tokens of prompts and {total.response_tokens:,} of responses"
        )
        if init.price is None:
            return words
        cost = init.price.prompt * total.prompt_tokens + init.price.response * total.response_tokens
        return f"{words}, which cost {cost / 1e6:,.2f}"
