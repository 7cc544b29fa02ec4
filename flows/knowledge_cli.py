"""The commands that bring top-k captured elsewhere in, and give ours away.

Everything heavy is imported inside the commands, as in flows/cli.py.
"""

from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(".")

Split = Annotated[str, typer.Argument(help="train or calibration.")]
Lines = Annotated[Path, typer.Argument(help="JSON lines, one example each.")]


def add_to(app: typer.Typer) -> None:
    for command in (import_knowledge, export_knowledge):
        app.command()(command)


def export_knowledge(split: Split, path: Lines) -> None:
    """Write a split's token decisions as {token id: log-probability} per position.

    Example: firstkd export-knowledge train knowledge.jsonl
    """
    from firstkd.signals.interchange import export_lines
    from firstkd.signals.knowledge import KnowledgeStore

    store = KnowledgeStore(ROOT / "data/extract" / split / "token")
    export_lines(store, path)
    typer.echo(f"{len(store.keys):,} examples, {len(store):,} tokens in {path}")


def import_knowledge(split: Split, path: Lines) -> None:
    """Put what another tool has captured in the place of a split's token decisions.

    The teacher, the tokenizer and the data are taken to be this pipeline's; example by example the
    number of tokens is checked. Then `dvc commit --force extract` makes it the stage's result.

    Example: firstkd import-knowledge train captured.jsonl
    """
    from firstkd.data.examples import read_examples
    from firstkd.data.prompts import encode
    from firstkd.models.folders import load_tokenizer
    from firstkd.settings import load_settings
    from firstkd.signals.interchange import import_lines
    from firstkd.signals.knowledge import KnowledgeStore, Layout
    from tasks.identity import knowledge_identity

    settings = load_settings(ROOT / "params.yaml")
    tokenizer = load_tokenizer(ROOT / "data/finetune")
    examples = read_examples(ROOT / f"data/prepare/{split}.parquet")
    questions = encode(examples, tokenizer, settings.prompt)
    folder = ROOT / "data/extract" / split / "token"
    layout = Layout(kind="token", top_k=settings.extract.top_k, vocabulary_size=len(tokenizer))
    identity = knowledge_identity(ROOT, split)
    import_lines(path, questions, layout, settings.extract.shard_examples, folder, identity)
    store = KnowledgeStore(folder)
    lacks = ", ".join(store.manifest["missing"])
    typer.echo(f"{len(store.keys):,} examples, {len(store):,} tokens in {folder}")
    if lacks:
        typer.echo(f"missing: {lacks}; what needs it will refuse this store")
