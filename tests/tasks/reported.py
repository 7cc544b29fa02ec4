"""A project with everything that the report reads, of as many models as a test wants."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ruamel.yaml import YAML

from firstkd.data.examples import Example, write_examples
from firstkd.measure.comparison import summary
from firstkd.measure.metrics import Predictions, one_right
from tasks.scores import plain
from tests.tiny import REPOSITORY

SETS = {"test": 120, "elsewhere": 40}
CHOICES = ("in a den", "in a hive", "in the <sea> & sky", "under the ground")


def write_project(root: Path, models: dict[str, str], arms: dict[str, Any], student: str) -> None:
    """Write params.yaml and data/ as the stages before the report leave them.

    A model of lower rank in `models` is right more often; each is over-confident.
    """
    yaml = YAML()
    params = yaml.load(REPOSITORY / "params.yaml")
    params["arms"], params["evaluate"]["models"] = arms, models
    params["evaluate"]["bootstrap_samples"] = 200
    params["record"]["arm"] = student
    root.mkdir(parents=True, exist_ok=True)
    yaml.dump(params, root / "params.yaml")
    answers = _write_examples(root / "data/prepare")
    _write_knowledge(root / "data/extract")
    for rank, (name, folder) in enumerate(models.items()):
        write_evaluation(root, name, answers, seed=rank, skill=1.5 - rank / 10)
        curve = [{"step": step + 1, "loss": 3 / (step + 1)} for step in range(20)]
        path = root / "data" / folder / "training.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(point) + "\n" for point in curve))


def _write_examples(folder: Path) -> dict[str, np.ndarray]:
    answers = {}
    for number, (name, count) in enumerate({"train": 30, "calibration": 20, **SETS}.items()):
        split = f"ood_{name}" if name == "elsewhere" else name
        answers[name] = np.random.default_rng(number).integers(len(CHOICES), size=count)
        examples = [
            Example(
                f"{name}/{i}",
                f"Where is number {i}?",
                CHOICES[right],
                CHOICES,
                int(right),
                name,
                split,
            )
            for i, right in enumerate(answers[name])
        ]
        folder.mkdir(parents=True, exist_ok=True)
        write_examples(folder / f"{split}.parquet", examples)
    return answers


def _write_knowledge(folder: Path) -> None:
    store = folder / "train/token"
    store.mkdir(parents=True)
    (store / "00000.safetensors").write_bytes(b"k" * 2400)
    (store / "manifest.json").write_text('{"vocabulary_size": 400}')
    mass = {f"top_{k}": 1 - 0.5**k for k in range(1, 6)}
    found = {split: {"tokens": 100, "cumulative_mass": mass} for split in ("train", "calibration")}
    (folder / "metrics.json").write_text(json.dumps(found))


def write_evaluation(
    root: Path, name: str, answers: dict[str, np.ndarray], seed: int, skill: float
) -> None:
    draw, temperature = np.random.default_rng(seed), 2.5
    sets, tables = {}, []
    for test_set in SETS:
        right = answers[test_set]
        scores = draw.normal(size=(len(right), len(CHOICES)))
        scores[np.arange(len(right)), right] += skill
        is_right = one_right(right, len(CHOICES))
        raw = Predictions.of_choices(3 * scores, is_right)
        calibrated = Predictions.of_choices(3 * scores / temperature, is_right)
        sets[test_set] = {
            "examples": len(right),
            "raw": plain(summary(raw, 200, 0)),
            "calibrated": plain(summary(calibrated, 200, 0)),
        }
        columns = {
            "set": [test_set] * len(right),
            "id": [f"{test_set}/{i}" for i in range(len(right))],
            "answer": [CHOICES[index] for index in right],
            "answer_index": right,
            "is_right": is_right.tolist(),
            "predicted_index": raw.predicted_index,
            "confidence": raw.confidence,
            "calibrated_confidence": calibrated.confidence,
            "correct": raw.correct,
            "scores": (3 * scores).tolist(),
        }
        tables.append(pa.table(columns))
    metrics = {"parameters": 10**8, "bytes": 2 * 10**8, "temperature": temperature, "sets": sets}
    folder = root / "data/evaluate" / name
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    pq.write_table(pa.concat_tables(tables), folder / "predictions.parquet")
