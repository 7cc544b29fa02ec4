"""What `firstkd run` says at the end: the models side by side, the verdict, where to look next."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from firstkd.settings import Settings
from flows.results import HEADINGS, ModelResult, load_results

if TYPE_CHECKING:  # `compare` uses this module too, and MLflow takes long to import
    from flows.conclude import Concluded


def print_summary(root: Path, settings: Settings, concluded: "Concluded") -> None:
    console = Console()
    name = settings.record.registered_model
    results = load_results(root, settings)
    console.print(_table(results))
    for result in results:
        if result.name == "teacher":
            console.print(_recalibration(result), highlight=False)
    console.print(
        concluded.verdict.in_words(f"{name} v{concluded.version.version}"),
        highlight=False,
        soft_wrap=True,
    )
    in_charge = f"The champion is {name} v{concluded.champion}."
    console.print(f"{in_charge if concluded.champion else 'No champion yet.'}\n", highlight=False)
    console.print(
        "Where to look next, after `. .venv/bin/activate`:\n"
        f"  report      firstkd report, or {root / 'data' / 'report' / 'index.html'}\n"
        f"  every run   mlflow ui --backend-store-uri {settings.record.tracking_uri}\n"
        "  state       firstkd status",
        highlight=False,
        soft_wrap=True,
    )


def print_comparison(results: list[ModelResult], test_set: str) -> None:
    Console().print(_table(results, f"the test set {test_set}"))


def _table(results: list[ModelResult], questions: str = "the test questions") -> Table:
    table = Table(
        title=f"On {questions}, with 95 % intervals; T: the model's own temperature",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for result in results:
        table.add_row(*(f"{value}\n[dim]{detail}[/dim]" for value, detail in result.cells()))
    return table


def _recalibration(teacher: ModelResult) -> str:
    return (
        f"Recalibration at T = {teacher.temperature:.2f} takes the teacher's ECE on the test "
        f"questions from {teacher.ece.value:.3f} to {teacher.calibrated_ece.value:.3f}."
    )
