"""Store a signal: what one or more models say about the examples.

Reads   data/model/OF/ or data/signal/OTHER/, as signals.NAME of params.yaml says,
        data/prepare/{train,unlabelled,calibration}.parquet
Writes  data/signal/NAME/{train,calibration}/ (stores), data/signal/NAME/metrics.json
Run as  python -m tasks.signal NAME   (normally through `dvc repro signal-NAME`)

It starts itself as several processes if machine.processes asks for them and machine.placement
leaves each something to do. An interrupted run leaves what it has captured in data/.signal/, and
the next run resumes from there.
"""

import logging
from pathlib import Path
from typing import Any

from firstkd.data.examples import example_key
from firstkd.errors import ConfigError
from firstkd.files import replace_folder, sha256_of, write_json
from firstkd.models.folders import load_tokenizer, precision_here, vocabulary_size
from firstkd.models.tokenizers import vocabulary_digest
from firstkd.reproducibility import deterministic
from firstkd.settings import Settings, load_settings
from firstkd.signals.base import CapturedSignal, CombinedSignal
from firstkd.signals.capture import Capture, Shards
from firstkd.signals.store import SignalStore
from firstkd.train.distributed import Ranks, join_ranks
from tasks.code import ASKING
from tasks.layout import (
    learned_from,
    model_folder,
    prepared,
    signal_folder,
    temperature_files,
)
from tasks.partial import partial_folder
from tasks.stage import run_stage
from tasks.viewing import viewer_of

log = logging.getLogger(__name__)


def main(root: Path, name: str) -> None:
    settings = load_settings(root / "params.yaml")
    if name not in settings.signals:
        raise ConfigError(f"there is no signals.{name}; there are {', '.join(settings.signals)}")
    deterministic(settings.runtime.seed, settings.runtime.threads)
    ranks, signal = join_ranks(), settings.signals[name]
    # a large teacher takes long to hash, so one process does it for all
    identity = ranks.from_first(lambda: identity_of(root, settings, name))
    made_from: list[Any] = [identity, settings.capture.model_dump(), settings.runtime.model_dump()]
    if any(settings.models[of].init.is_served for of in signal.models):
        # answers are paid for: only what decides them drops them
        made_from = [identity, settings.capture.shard_examples]
        partial = partial_folder(root / "data/.signal", name, made_from, ranks, ASKING)
    else:
        partial = partial_folder(root / "data/.signal", name, made_from, ranks)
    if isinstance(signal, CombinedSignal):
        if ranks.is_first:
            from tasks.combine import combine

            for split in files_of(root, settings):
                combine(root, signal, split, partial / split, identity)
    elif not isinstance(signal, CapturedSignal) or signal.live:
        raise ConfigError(f"signals.{name} is live, so it is not stored")
    else:
        capture(root, settings, signal, partial, identity, ranks)
    ranks.barrier()
    if not ranks.is_first:
        return
    metrics = {}
    for split in files_of(root, settings):
        metrics[split] = signal.describe(SignalStore(partial / split))
        if warning := signal.warning(metrics[split]):
            log.warning("signals.%s, %s: %s", name, split, warning)
    write_json(partial / "metrics.json", metrics)
    replace_folder(partial, signal_folder(root, name))


def capture(
    root: Path,
    settings: Settings,
    signal: CapturedSignal,
    partial: Path,
    identity: dict[str, Any],
    ranks: Ranks,
) -> None:
    """Run the signal's model over both splits, or query it if it is behind a server."""
    (of,) = signal.models
    folder, splits = model_folder(root, of), files_of(root, settings)
    tokenizer, viewer = load_tokenizer(folder), viewer_of(root, settings, signal)
    if signal.has_token_ids:
        identity = {**identity, "vocabulary": vocabulary_digest(tokenizer)}
    run: Shards
    if settings.models[of].init.is_served:
        from tasks.served import ask

        run = ask(root, settings, signal, viewer, splits, partial, ranks)
    else:
        placement, precision = settings.machine.placement, settings.capture.precision
        with placement.running(folder, precision, ranks) as model:
            width = model.config.hidden_size
            run = Capture(signal, vocabulary_size(model), settings.capture, ranks, width)
            for split, files in splits.items():
                for first, examples in run.parts(files):
                    if run.missing(partial / split, len(examples), first):
                        questions = viewer.encode(examples, tokenizer, signal.has_token_ids)
                        keys = [example_key(example) for example in examples]
                        run.write(model, questions, keys, partial / split, first)
    ranks.barrier()
    if ranks.is_first:
        for split in splits:
            run.finish(partial / split, identity)


def files_of(root: Path, settings: Settings) -> dict[str, list[Path]]:
    """Return the files of examples that each split of a signal covers."""
    return {
        "train": learned_from(root, settings),
        "calibration": [prepared(root, "calibration")],
    }


def identity_of(root: Path, settings: Settings, name: str) -> dict[str, Any]:
    """Return everything that decides what a signal is."""
    signal = settings.signals[name]
    inputs = [model_folder(root, of) for of in signal.models]
    inputs += [signal_folder(root, of) for of in signal.signals]
    inputs += temperature_files(root, signal)
    inputs += [file for files in files_of(root, settings).values() for file in files]
    return {
        "signal": signal.model_dump(),
        "inputs": {path.relative_to(root).as_posix(): sha256_of(path) for path in inputs},
        "prompt": settings.prompt.model_dump(),
        "precision": precision_here(settings.capture.precision),
    }


if __name__ == "__main__":
    run_stage(main, "signal", "name", lambda machine: machine.placement.captures_in_all)
