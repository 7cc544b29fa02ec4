"""Put the models side by side: the page, the table and the diagrams a person looks at.

Reads   data/evaluate/MODEL/ of every model
Writes  data/report/index.html (self-contained), table.json, reliability.png
Run as  python -m tasks.report   (normally through `dvc repro report`)
"""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jinja2 import Environment, PackageLoader, select_autoescape

from firstkd.files import atomic_file, atomic_folder, read_json, write_json
from firstkd.metrics import Predictions
from firstkd.plots import save_reliability
from firstkd.settings import load_settings
from tasks.stage import run_stage

SHOWN = ("accuracy", "ece", "trust", "brier", "nll")


def main(root: Path = Path(".")) -> None:
    settings = load_settings(root / "params.yaml")
    evaluated = {name: root / "data/evaluate" / name for name in settings.evaluate.models}
    metrics = {name: read_json(folder / "metrics.json") for name, folder in evaluated.items()}
    diagrams = {}
    for name, folder in evaluated.items():
        diagrams[name] = test_predictions(folder, temperature=1.0)
        temperature = metrics[name]["temperature"]
        diagrams[f"{name}, T = {temperature:.2f}"] = test_predictions(folder, temperature)
    with atomic_folder(root / "data/report") as folder:
        write_json(folder / "table.json", table(metrics))
        save_reliability(folder / "reliability.png", diagrams)
        picture = base64.b64encode((folder / "reliability.png").read_bytes()).decode()
        page = render(table(metrics), picture, headline(metrics, settings.student_name))
        with atomic_file(folder / "index.html") as temporary:
            temporary.write_text(page, encoding="utf-8")


def test_predictions(folder: Path, temperature: float) -> Predictions:
    rows = pq.read_table(folder / "predictions.parquet")
    rows = rows.filter(pc.equal(rows["set"], "test"))
    scores = np.array(rows["scores"].to_pylist())
    return Predictions.of_choices(scores / temperature, rows["answer_index"].to_numpy())


def table(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per model, test set and reading of its confidence."""
    return [
        {
            "model": name,
            "set": test_set,
            "confidence": reading,
            "temperature": values["temperature"] if reading == "calibrated" else 1.0,
            "parameters": values["parameters"],
            "bytes": values["bytes"],
            "examples": found["examples"],
            **found[reading],
        }
        for name, values in metrics.items()
        for test_set, found in values["sets"].items()
        for reading in ("raw", "calibrated")
    ]


def headline(metrics: dict[str, Any], arm: str) -> str:
    """Say in words what the student of this arm is worth."""
    found = metrics[arm]["sets"]["test"]
    accuracy, ece = found["raw"]["accuracy"]["value"], found["raw"]["ece"]["value"]
    return (
        f"The student “{arm}” answers {accuracy:.1%} of the test questions right, and its "
        f"confidence is off by {ece:.1%} on average; with its own temperature by "
        f"{found['calibrated']['ece']['value']:.1%}."
    )


def render(rows: list[dict[str, Any]], picture: str, summary: str) -> str:
    environment = Environment(
        loader=PackageLoader("tasks", "templates"), autoescape=select_autoescape()
    )
    template = environment.get_template("report.html")
    return template.render(rows=rows, shown=SHOWN, picture=picture, summary=summary)


if __name__ == "__main__":
    run_stage(main, "report")
