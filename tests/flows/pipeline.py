"""A pipeline in miniature: writes what the real stages write, in no time and without torch.

Run by the DVC project of tests/flows/conftest.py as `python pipeline.py STAGE [VALUE]`.
A student of n epochs answers ten questions in each of them right.
"""

import hashlib
import json
import math
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from ruamel.yaml import YAML

QUESTIONS = 60
CHOICES = 4
TEMPERATURE = 2.0
SETS = ("test", "openbookqa")
RANKING = ("auroc", "aurc", "excess_aurc", *(f"accuracy_at_{share}" for share in (25, 50, 75)))
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
    "0000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)
params = YAML(typ="safe").load(Path("params.yaml"))


def prepare() -> None:
    rows = [f"q{i}" for i in range(QUESTIONS)]
    for name in ("train", "calibration", *SETS):
        table = pa.table({"id": rows, "prompt": rows, "choices": [["a", "b"]] * QUESTIONS})
        pq.write_table(table, folder("prepare") / f"{name}.parquet")


def train(out: Path, stage: str, epochs: int) -> None:
    if epochs == 13:
        sys.stderr.write("\r 50%|#\nmodel: thirteen epochs are too many\n")
        sys.exit(2)  # as tasks.stage.run_program does for a PipelineError
    (out / "model.safetensors").write_bytes(b"weights" * epochs)
    (out / "config.json").write_text("{}")
    points = [{"step": step, "loss": 1 / (step + 1)} for step in range(epochs)]
    curve = "".join(json.dumps(point) + "\n" for point in points)
    (out / "training.jsonl").write_text(curve)
    logs = Path("logs") / stage
    logs.mkdir(parents=True, exist_ok=True)
    (logs / "curve.jsonl").write_text(curve)
    (logs / "cost.json").write_text(
        json.dumps(
            {
                **{"seconds": 12.5, "peak_memory_bytes": 10**9, "tokens_per_second": 400},
                **{"prompt_tokens": 1200, "response_tokens": 30, "cost": 0.25},
            }
        )
    )
    print(f"INFO {stage}: trained", file=sys.stderr)
    sys.stderr.write("\r 50%|#\r100%|##\n")


def evaluate(model: str) -> None:
    right = min(QUESTIONS, 10 * params["train"]["distill"]["epochs"])
    out = folder("evaluate", model)
    correct = [i < right for i in range(QUESTIONS)]
    answers = [i % CHOICES for i in range(QUESTIONS)]
    given = [
        a if is_right else (a + 1) % CHOICES for a, is_right in zip(answers, correct, strict=True)
    ]
    confidence = max(0.3, right / QUESTIONS - 0.05)  # so the ECE is 0.05
    others = (1 - confidence) / (CHOICES - 1)
    scores = [
        [TEMPERATURE * math.log(confidence if i == g else others) for i in range(CHOICES)]
        for g in given
    ]
    tables = [
        pa.table(
            {
                "set": [name] * QUESTIONS,
                "id": [f"q{i}" for i in range(QUESTIONS)],
                "answer": [f"answer {a}" for a in answers],
                "answer_index": answers,
                "is_right": [[i == a for i in range(CHOICES)] for a in answers],
                "predicted_index": given,
                "confidence": [0.9] * QUESTIONS,
                "calibrated_confidence": [confidence] * QUESTIONS,
                "correct": correct,
                "scores": scores,
            }
        )
        for name in SETS
    ]
    pq.write_table(pa.concat_tables(tables), out / "predictions.parquet")
    names = ("ece", "ece_15", "brier", "nll", "trust", "mean_confidence", *RANKING)
    raw = {name: {"value": 0.4, "low": 0.3, "high": 0.5} for name in names}
    calibrated = {name: {"value": 0.05, "low": 0.01, "high": 0.1} for name in names}
    share = right / QUESTIONS
    raw["accuracy"] = calibrated["accuracy"] = {"value": share, "low": share - 0.1, "high": 1.0}
    sets = {name: {"examples": QUESTIONS, "raw": raw, "calibrated": calibrated} for name in SETS}
    metrics = {"parameters": 1000, "bytes": 2000, "temperature": TEMPERATURE, "sets": sets}
    (out / "metrics.json").write_text(json.dumps(metrics))
    (out / "calibration.json").write_text('{"temperature": 2.0}')


def export(name: str) -> None:
    out = folder("export", name)
    weights = Path("data/model", params["exports"][name]["of"], "model.safetensors").read_bytes()
    (out / "model.onnx").write_bytes(b"onnx" + weights)
    digest = hashlib.sha256(b"onnx" + weights).hexdigest()
    facts = {"file": "model.onnx", "sha256": {"model.onnx": digest}}
    (out / "firstkd.json").write_text(json.dumps(facts))


def report() -> None:
    out = folder("report")
    (out / "table.json").write_text("[]")
    (out / "index.html").write_text("<p>report</p><!-- firstkd report: cost and lineage -->")
    (out / "reliability.png").write_bytes(PIXEL)


def folder(*names: str) -> Path:
    path = Path("data", *names)
    path.mkdir(parents=True, exist_ok=True)
    return path


if __name__ == "__main__":
    stage, *values = sys.argv[1:]
    match stage:
        case "model":
            (name,) = values
            epochs = params["train"][params["models"][name]["train"]]["epochs"]
            train(folder("model", name), f"model-{name}", epochs)
        case _:
            stages = {"prepare": prepare, "evaluate": evaluate, "export": export, "report": report}
            stages[stage](*values)
