"""What `firstkd run` says at the end: the models side by side, the verdict, where to look next."""

from pathlib import Path

from rich.console import Console

from firstkd.settings import Settings
from flows.conclude import Concluded
from tasks.cascade import cascade_words
from tasks.evaluated import teacher_name
from tasks.tables import load_differences, load_metrics, print_comparison, recalibration_words


def print_summary(root: Path, settings: Settings, concluded: Concluded) -> None:
    name, measured = settings.record.registered_model, load_metrics(root, settings)
    print_comparison(measured, "test", settings.record.student, load_differences(root))
    champion = f"The champion is {name} v{concluded.champion}."
    said = [
        *([recalibration_words(measured[found])] if (found := teacher_name(settings)) else []),
        *cascade_words(root),
        concluded.verdict.in_words(f"{name} v{concluded.version.version}"),
        f"{champion if concluded.champion else 'No champion yet.'}\n",
        "Where to look next, after `. .venv/bin/activate`:\n"
        f"  report      firstkd report, or {root / 'data' / 'report' / 'index.html'}\n"
        f"  every run   mlflow ui --backend-store-uri {settings.record.tracking_uri}\n"
        "  state       firstkd status",
    ]
    Console().print("\n".join(said), highlight=False, markup=False, soft_wrap=True)
