"""A project with everything that the report reads, of as many models as a test wants."""

import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ruamel.yaml import YAML

from firstkd.data.examples import Example, write_examples
from firstkd.files import write_json
from firstkd.measure.comparison import summary
from firstkd.measure.metrics import Predictions
from tasks.scores import plain
from tests.tiny import REPOSITORY, one_right

SETS = {"test": 120, "elsewhere": 40}
CHOICES = ("in a den", "in a hive", "in the <sea> & sky", "under the ground")


def write_project(root: Path, models: list[str], student: str) -> None:
    """Write params.yaml and data/ as the stages before the report leave them.

    A model of lower rank in `models` is right more often; each is over-confident. Those that the
    shipped settings do not have learn as `first` does, which learns from tokens, too.
    """
    yaml = YAML()
    params = yaml.load(REPOSITORY / "params.yaml")
    params["signals"] = {
        "choices": {"kind": "choices", "of": "teacher"},
        "tokens": {"kind": "tokens", "of": "teacher", "select": {"kind": "top_k", "k": 5}},
    }
    params["models"]["first"]["learn"] = {
        "choices": {"kind": "choice_kl", "from": "choices"},
        "tokens": {"kind": "sparse_kl", "from": "tokens"},
    }
    for name in models:
        params["models"].setdefault(name, deepcopy(params["models"]["first"]))
    params["evaluate"]["models"] = models
    params["evaluate"]["bootstrap_samples"] = 200
    params["record"]["student"] = student
    root.mkdir(parents=True, exist_ok=True)
    yaml.dump(params, root / "params.yaml")
    answers = _write_examples(root / "data/prepare")
    _write_signals(root / "data/signal")
    for rank, name in enumerate(models):
        write_evaluation(root, name, answers, seed=rank, skill=1.5 - rank / 10)
        curve = [{"step": step + 1, "loss": 3 / (step + 1)} for step in range(20)]
        if "learn" in params["models"][name]:
            path = root / "data/model" / name / "training.jsonl"
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


def _write_signals(folder: Path) -> None:
    """What tasks/signal.py describes of the signals."""
    choices = {"examples": 30, "records": 120, "bytes": 1000}
    mass = {f"top_{k}": 1 - 0.5**k for k in range(1, 6)}
    tokens = {
        "examples": 30,
        "records": 100,
        "bytes": 2400,
        "cumulative_mass": mass,
        "dense_bytes": 100 * 400 * 2,
        "vocabulary_size": 400,
    }
    for name, described in {"choices": choices, "tokens": tokens}.items():
        write_json(folder / name / "metrics.json", {"train": described, "calibration": described})


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
            "group": [f"{test_set}/{i}" for i in range(len(right))],
            "answer": [CHOICES[index] for index in right],
            "answer_index": right,
            "is_right": is_right.tolist(),
            "given": [CHOICES[index] for index in raw.predicted_index],
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
    write_json(folder / "calibration.json", {"temperature": temperature, "policy": None})
    pq.write_table(pa.concat_tables(tables), folder / "predictions.parquet")
