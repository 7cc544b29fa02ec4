"""The commands that bring top-k captured elsewhere in, and give ours away.

Everything heavy is imported inside the commands, as in flows/cli.py.
"""

from pathlib import Path
from typing import Annotated

import typer

from firstkd.errors import ConfigError

ROOT = Path(".")

Name = Annotated[str, typer.Argument(help="A signal of tokens in params.yaml.")]
Split = Annotated[str, typer.Argument(help="train or calibration.")]
Lines = Annotated[Path, typer.Argument(help="JSON lines, one example each.")]


def add_to(app: typer.Typer) -> None:
    for command in (import_knowledge, export_knowledge):
        app.command()(command)


def export_knowledge(name: Name, split: Split, path: Lines) -> None:
    """Write a signal's token decisions as {token id: log-probability} per position.

    Example: firstkd export-knowledge tokens train knowledge.jsonl
    """
    from firstkd.signals.interchange import export_lines
    from firstkd.signals.store import SignalStore
    from tasks.layout import signal_folder

    store = SignalStore(signal_folder(ROOT, name, split))
    export_lines(store, path)
    typer.echo(f"{len(store.keys):,} examples, {len(store):,} tokens in {path}")


def import_knowledge(name: Name, split: Split, path: Lines) -> None:
    """Replace a split of a signal of tokens by what another tool has captured.

    The teacher, the tokenizer and the data are taken to be this pipeline's; example by example the
    number of tokens is checked. `dvc commit --force signal-NAME` then makes it the stage's result.

    Example: firstkd import-knowledge tokens train captured.jsonl
    """
    from firstkd.data.examples import example_key, read_all
    from firstkd.data.prompts import encode
    from firstkd.models.folders import load_model, load_tokenizer, vocabulary_size
    from firstkd.models.tokenizers import vocabulary_digest
    from firstkd.settings import load_settings
    from firstkd.signals.interchange import import_lines
    from firstkd.signals.store import SignalStore
    from firstkd.signals.tokens import Tokens
    from tasks.layout import model_folder, signal_folder
    from tasks.signal import files_of, identity_of

    settings = load_settings(ROOT / "params.yaml")
    signal = settings.signals.get(name)
    if not isinstance(signal, Tokens):
        known = [key for key, each in settings.signals.items() if isinstance(each, Tokens)]
        raise ConfigError(f"{name!r} is not a signal of tokens; there are {', '.join(known)}")
    model = model_folder(ROOT, signal.of)
    tokenizer = load_tokenizer(model)
    examples = read_all(files_of(ROOT, settings)[split])
    folder = signal_folder(ROOT, name, split)
    import_lines(
        path,
        encode(examples, tokenizer, settings.prompt),
        [example_key(example) for example in examples],
        signal,
        vocabulary_size(load_model(model, "bf16")),
        settings.capture.shard_examples,
        folder,
        {**identity_of(ROOT, settings, name), "vocabulary": vocabulary_digest(tokenizer)},
    )
    store = SignalStore(folder)
    typer.echo(f"{len(store.keys):,} examples, {len(store):,} tokens in {folder}")
    if lacks := ", ".join(store.manifest["incomplete"]):
        typer.echo(f"incomplete: {lacks}; what needs it will refuse this store")
