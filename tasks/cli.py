"""The commands that need no record: the graph of stages, served questions, imported knowledge.

Everything heavy is imported inside the commands, as in flows/cli.py.
"""

from pathlib import Path
from typing import Annotated

import typer

from firstkd.words import counted

ROOT = Path(".")

Name = Annotated[str, typer.Argument(help="A signal of tokens in params.yaml.")]
Split = Annotated[str, typer.Argument(help="train or calibration.")]
Lines = Annotated[Path, typer.Argument(help="File of JSON lines, one example per line.")]


def add_to(app: typer.Typer) -> None:
    for command in (graph, collect, import_knowledge, export_knowledge):
        app.command()(command)


def graph(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail if dvc.yaml is out of date.")
    ] = False,
) -> None:
    """Write dvc.yaml, the graph of stages, from params.yaml.

    `firstkd run` does so itself; call it before `dvc repro` when models or signals have changed.
    Example: `firstkd graph`
    """
    from firstkd.settings import load_settings
    from tasks.graph import check_graph, write_graph

    settings = load_settings(ROOT / "params.yaml")
    if check:
        check_graph(ROOT, settings)
    elif write_graph(ROOT, settings):
        typer.echo("wrote dvc.yaml")
    else:
        typer.echo("dvc.yaml is up to date")


def collect(
    corrections: Annotated[
        Path | None, typer.Option(help="File with the `id` of each answer and the right `answer`.")
    ] = None,
) -> None:
    """Write served questions to sources/traffic.jsonl, to learn from.

    Corrected ones go to sources/corrected.jsonl, to calibrate on.
    Example: `firstkd collect --corrections corrections.csv`
    """
    from firstkd.settings import load_settings
    from tasks.collect import collect
    from tasks.corrections import collect_corrected

    path, count = collect(ROOT)
    typer.echo(
        f"{counted(count, 'question')} in {path}; name it in fetch.datasets with role: unlabelled"
    )
    if corrections:
        policy = load_settings(ROOT / "params.yaml").serve.policy
        found = collect_corrected(ROOT, corrections, policy)
        where = f"{counted(found.questions, 'corrected question')} in {found.path}"
        typer.echo(f"{where}; name it in fetch.datasets with role: calibration")
        if found.unknown:
            unknown = counted(found.unknown, "correction")
            typer.echo(f"{unknown} for questions that were not logged")
        if found.promise:
            typer.echo(found.promise)


def export_knowledge(name: Name, split: Split, path: Lines) -> None:
    """Write a signal's token decisions as {token id: log-probability} per position.

    Example: firstkd export-knowledge tokens train knowledge.jsonl
    """
    from tasks.knowledge import export_split

    store = export_split(ROOT, name, split, path)
    typer.echo(f"{counted(len(store.keys), 'example')}, {counted(len(store), 'token')} in {path}")


def import_knowledge(name: Name, split: Split, path: Lines) -> None:
    """Replace a split of a signal of tokens with one captured by another tool.

    It is assumed to have this pipeline's teacher, tokenizer and data; only the number of tokens per
    example is checked. `dvc commit --force signal-NAME` then makes it the stage's result.

    Example: firstkd import-knowledge tokens train captured.jsonl
    """
    from tasks.knowledge import import_split

    store = import_split(ROOT, name, split, path)
    typer.echo(
        f"{counted(len(store.keys), 'example')}, {counted(len(store), 'token')} in {store.folder}"
    )
    if lacks := ", ".join(store.manifest["incomplete"]):
        typer.echo(f"incomplete: {lacks}; terms that need it will refuse this store")
