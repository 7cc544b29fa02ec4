"""Put the models side by side: one page for people, and the numbers for DVC's plots.

Reads   data/evaluate/MODEL/ and data/model/MODEL/training.jsonl of every model in evaluate.models,
        data/signal/NAME/metrics.json, data/prepare/
Writes  data/report/index.html (self-contained), metrics.json, table.json, differences.json,
        cascade.json, reliability.png,
        plots/{reliability,coverage,training}/MODEL.csv
Run as  python -m tasks.report   (normally through `dvc repro report`)

Nothing here depends on a clock: `firstkd report` makes a page from this one that adds what the
run cost and where it was recorded.
"""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from firstkd.files import atomic_file, atomic_folder, read_json_lines, sha256_of, write_json
from firstkd.measure.figures import save_reliability
from firstkd.settings import Settings, load_settings
from tasks.cascade import cascade, cascade_figure
from tasks.columns import COLUMNS, TEXT
from tasks.evaluated import load_evaluated
from tasks.findings import Findings, compare_student
from tasks.illustrations import (
    ANSWERED,
    Curves,
    Models,
    accuracy_at,
    coverage_figure,
    histograms,
    knowledge,
    reliability_figures,
    training_figures,
)
from tasks.layout import model_folder
from tasks.mistakes import confident_mistakes
from tasks.page import render, table_rows
from tasks.report_numbers import differences, headline_metrics, table, write_plots
from tasks.stage import run_stage


def main(root: Path = Path(".")) -> None:
    settings = load_settings(root / "params.yaml")
    models = load_evaluated(root, settings)
    curves = training_curves(root, settings)
    findings = compare_student(models, settings)
    passed_on = cascade(models, settings)
    page = build_page(root, settings, models, curves, findings, passed_on)
    with atomic_folder(root / "data/report") as folder:
        write_json(folder / "table.json", table(models))
        write_json(folder / "metrics.json", headline_metrics(models))
        write_json(folder / "differences.json", differences(findings.comparisons))
        write_json(folder / "cascade.json", passed_on)
        write_plots(folder / "plots", models, curves)
        diagrams = {}
        for name, model in models.items():
            diagrams[name] = model.raw("test")
            diagrams[f"{name}, {model.served}"] = model.calibrated("test")
        save_reliability(folder / "reliability.png", diagrams)
        with atomic_file(folder / "index.html") as temporary:
            temporary.write_text(page, encoding="utf-8")


def build_page(
    root: Path,
    settings: Settings,
    models: Models,
    curves: Curves,
    findings: Findings,
    passed_on: dict[str, Any],
) -> str:
    prepared = sorted((root / "data/prepare").glob("*.parquet"))
    student = models[settings.record.student]
    return render(
        student=student,
        models=models,
        findings=findings,
        tables={
            test_set: [
                (columns, table_rows(models, test_set, columns))
                for columns in (COLUMNS, TEXT)
                if columns is COLUMNS or "text" in found
            ]
            for test_set, found in student.sets.items()
        },
        reliability=reliability_figures(models),
        coverage=coverage_figure(models),
        cascade=passed_on,
        deferral=cascade_figure(models, settings),
        answered=ANSWERED,
        accuracy_at=accuracy_at(models),
        histograms=histograms(models),
        knowledge=knowledge(root, settings),
        training=training_figures(curves),
        mistakes=confident_mistakes(
            sorted(models.values(), key=lambda model: model is not student), prepared
        ),
        data=[
            {
                "split": path.stem,
                "examples": pq.read_metadata(path).num_rows,
                "sha256": sha256_of(path),
            }
            for path in prepared
        ],
    )


def training_curves(root: Path, settings: Settings) -> Curves:
    """Return the training curve of each evaluated model that was trained."""
    return {
        name: read_json_lines(model_folder(root, name) / "training.jsonl")
        for name in settings.measured_models
        if settings.models[name].learn is not None
    }


if __name__ == "__main__":
    run_stage(main, "report")
