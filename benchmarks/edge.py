"""What a student costs in each form, on one core: bytes, memory, load time and time per question.

Exports a trained model in every kind and precision, then asks each form the same questions, one at
a time, in a separate process on one core. `ms` is processor time per question, which other programs
on the machine affect less than wall-clock time; memory is what the process adds after its imports.
Probabilities at T are compared with those of the float32 weights. Prints one JSON line.

Run as  python -m benchmarks.edge data/model/first data/prepare/test.parquet 2.8

where 2.8 is the model's T.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

QUESTIONS, WARM = 40, 2
FORMS = {
    "bf16": (),
    "fp32": (),
    "onnx_fp32": ("onnx", "fp32"),
    "onnx_int8": ("onnx", "int8"),
    "gguf_f16": ("gguf", "f16"),
    "gguf_q8": ("gguf", "q8_0"),
    "gguf_q4": ("gguf", "q4_0"),
}
Scores = Callable[[Any], Sequence[float]]


def write(form: str, model: Path, folder: Path) -> None:
    """Write an export, with what its reader needs."""
    from pydantic import TypeAdapter

    from firstkd.exports.base import Exported
    from firstkd.exports.kinds import AnyExport
    from firstkd.models.folders import load_model, load_tokenizer

    kind, weights = FORMS[form]
    export = TypeAdapter(AnyExport).validate_python(
        {"kind": kind, "weights": weights, "of": "model", "license": "Apache-2.0"}
    )
    what = Exported(load_model(model, "fp32").eval(), load_tokenizer(model), "{}")
    export.write(what, folder / export.file_name)


def through_torch(precision: str, model: Path) -> Scores:
    from firstkd.models.folders import load_model
    from firstkd.models.scoring import score_questions

    network = load_model(model, precision)
    return lambda question: score_questions(network, [question], 1)[0].tolist()


def through_runtime(form: str, folder: Path) -> Scores:
    from firstkd.exports.reader import RUNTIMES

    (file,) = folder.glob("model.*")
    runtime = RUNTIMES[file.suffix](file, 1, 256)
    return lambda question: [
        float(np.mean(tokens)) for tokens in runtime.logprobs(question.prompt, question.responses)
    ]


def measure(form: str, model: Path, questions: Path, folder: Path) -> dict[str, Any]:
    """Measure one form, in this process."""
    import torch

    from firstkd.data.examples import read_examples
    from firstkd.data.prompts import encode
    from firstkd.data.settings import PromptSettings
    from firstkd.models.folders import load_tokenizer

    torch.set_num_threads(1)
    examples = [example for example in read_examples(questions) if example.choices][:QUESTIONS]
    prompt = PromptSettings(format="cloze", max_length=256)
    asked = encode(examples, load_tokenizer(model), prompt)
    before, started = psutil.Process().memory_info().rss, time.process_time()
    scores = through_runtime(form, folder) if FORMS[form] else through_torch(form, model)
    loaded = time.process_time()
    for question in asked[:WARM]:
        scores(question)
    warm = time.process_time()
    found = [scores(question) for question in asked]
    ms = (time.process_time() - warm) / len(asked) * 1000
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    answers = [example.answer_index for example in examples]
    return {
        "ms": ms, "load_s": loaded - started, "memory_mb": memory / 1e6,
        "scores": found, "answers": answers,
    }  # fmt: skip


def run(*arguments: object) -> Any:
    """Run this module in a separate process, on the first core that this one may use."""
    command = [sys.executable, "-m", "benchmarks.edge", *map(str, arguments)]
    core = min(os.sched_getaffinity(0))
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout else None


def main(model: Path, questions: Path, temperature: float) -> None:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for form in FORMS:
            folder = Path(scratch) / form
            folder.mkdir()
            if FORMS[form]:
                run("write", form, model, folder)
            found[form] = run("measure", form, model, questions, folder)
            files = folder.glob("model.*") if FORMS[form] else model.glob("*.safetensors")
            found[form]["bytes"] = sum(file.stat().st_size for file in files)
    result: dict[str, Any] = {"questions": len(found["fp32"]["answers"])}
    exact = probabilities(found["fp32"], temperature)
    for form, one in found.items():
        shown = probabilities(one, temperature)
        pairs = zip(shown, one["answers"], strict=True)
        right = [(int(row.argmax()) == answer, row[answer]) for row, answer in pairs]
        result[form] = {
            **{key: round(one[key], 2) for key in ("ms", "load_s")},
            "mb": round(one["bytes"] / 1e6, 1),
            "memory_mb": round(one["memory_mb"]),
            "largest_difference": round(
                max(float(abs(a - b).max()) for a, b in zip(shown, exact, strict=True)), 5
            ),
            "accuracy": round(float(np.mean([is_right for is_right, _ in right])), 3),
            "nll": round(float(-np.mean(np.log([p for _, p in right]))), 4),
        }
    result["gguf_q8_bytes_vs_bf16"] = round(found["gguf_q8"]["bytes"] / found["bf16"]["bytes"], 3)
    for precision in ("bf16", "fp32"):
        speed = found[precision]["ms"] / found["onnx_int8"]["ms"]
        result[f"onnx_int8_speed_vs_{precision}"] = round(speed, 2)
    print(json.dumps(result))


def probabilities(found: dict[str, Any], temperature: float) -> list[Any]:
    """Each question's probabilities of its choices, as they are served."""
    rows = [np.array(row)[np.isfinite(row)] / temperature for row in found["scores"]]
    return [np.exp(row - row.max()) / np.exp(row - row.max()).sum() for row in rows]


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write", form, model, folder]:
            write(form, Path(model), Path(folder))
        case ["measure", form, model, questions, folder]:
            print(json.dumps(measure(form, Path(model), Path(questions), Path(folder))))
        case [model, questions, temperature]:
            main(Path(model), Path(questions), float(temperature))
        case _:
            sys.exit(__doc__)
