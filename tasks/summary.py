"""What `firstkd run` prints last: the models side by side, the verdict, where to look next."""

from pathlib import Path

from rich.console import Console

from firstkd.settings import Settings
from tasks.cascade import cascade_words
from tasks.evaluated import teacher_name
from tasks.gate import Verdict
from tasks.record_place import where_runs_are
from tasks.tables import load_differences, load_metrics, print_comparison, recalibration_words


def print_summary(
    root: Path, settings: Settings, version: str, verdict: Verdict, champion: str | None
) -> None:
    """Print what became of the version that a run registered, and which is the champion now."""
    name, measured = settings.record.registered_model, load_metrics(root, settings)
    print_comparison(measured, "test", settings.record.student, load_differences(root))
    said = [
        *([recalibration_words(measured[found])] if (found := teacher_name(settings)) else []),
        *cascade_words(root),
        verdict.in_words(f"{name} v{version}"),
        f"{f'The champion is {name} v{champion}.' if champion else 'No champion yet.'}\n",
        "Where to look next, after `. .venv/bin/activate`:\n"
        f"  report      firstkd report, or {root / 'data' / 'report' / 'index.html'}\n"
        f"  every run   {where_runs_are(settings.record)}\n"
        "  state       firstkd status",
    ]
    Console().print("\n".join(said), highlight=False, markup=False, soft_wrap=True)
