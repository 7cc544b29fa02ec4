"""Processor time and peak memory of `prepare`, `validate` and `evaluate` over many short questions.

Each stage runs in a separate process on a project with a tiny model, so that the questions
dominate; `evaluate` gets random scores instead of a model's, since what a model needs does not grow
with the questions. Four fifths of them are test questions; 100 bootstrap samples are drawn.
Prints one JSON line; seconds are processor time, which a busy machine does not change.

Run as  python -m benchmarks.data [QUESTIONS [STAGE …]]   (default: 100,000, all three)
`validate` reads what `prepare` writes, so name both: `1000000 prepare validate`.
"""

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ruamel.yaml import YAML

from firstkd.data.examples import Example
from firstkd.data.settings import PromptSettings
from firstkd.settings import load_settings
from tests.tiny import write_tiny_model, write_tiny_params

if TYPE_CHECKING:  # so that each stage loads only the libraries that it needs itself
    from tasks.scores import Scored

STAGES = ("prepare", "validate", "evaluate")
WORDS = [
    "river",
    "market",
    "where",
    "people",
    "often",
    "keep",
    "their",
    "small",
    "garden",
    "winter",
    "under",
    "bridge",
]


def write_questions(path: Path, count: int) -> None:
    """Write questions about as long as CommonsenseQA's, with five choices each."""
    draw = random.Random(1)
    path.parent.mkdir(parents=True)
    with path.open("w", encoding="utf-8") as lines:
        for number in range(count):
            choices = [f"{draw.choice(WORDS)} {place} {draw.choice(WORDS)}" for place in range(5)]
            record = {
                "question": f"Question {number}: {' '.join(draw.choices(WORDS, k=11))}?",
                "choices": choices,
                "answer": draw.choice(choices),
            }
            lines.write(json.dumps(record) + "\n")


def write_project(root: Path, count: int) -> None:
    write_questions(root / "data/fetch/made.jsonl", count)
    for name in ("base", "teacher"):
        write_tiny_model(root / "data/model" / name)
    write_tiny_params(root)
    yaml = YAML()
    params = yaml.load(root / "params.yaml")
    source = {"source": "path:sources/made.jsonl", "format": "questions", "role": "split"}
    params["fetch"]["datasets"] = {"made": source}
    params["prepare"]["fractions"] = {"train": 0.1, "calibration": 0.1, "test": 0.8}
    params["evaluate"]["bootstrap_samples"] = 100
    yaml.dump(params, root / "params.yaml")


@dataclass(frozen=True)
class Guesser:
    """Stands in for a model: every choice gets a random score."""

    prompt: PromptSettings
    name: str = "guesser"

    def score(self, examples: Sequence[Example], title: str) -> "Scored":
        import torch

        from tasks.scores import Scored

        width = max(len(example.choices or ()) for example in examples)
        return Scored.of(examples, torch.randn(len(examples), width), by_one_token=True)


def evaluate(root: Path) -> None:
    from tasks.evaluation import write_evaluation

    settings = load_settings(root / "params.yaml")
    write_evaluation(root, Guesser(settings.prompt), None, settings, {})


def run(stage: str, root: Path) -> None:
    """Run one stage and print its seconds and the peak memory of this process in MB."""
    match stage:
        case "prepare":
            from tasks.prepare import main
        case "validate":
            from tasks.validate import main
        case _:
            main = evaluate
    started = time.process_time()
    main(root)
    seconds = time.process_time() - started
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def main(count: int, stages: Sequence[str]) -> None:
    found: dict[str, float] = {"questions": count}
    with tempfile.TemporaryDirectory() as folder:
        write_project(Path(folder), count)
        for stage in stages:
            command = [sys.executable, "-m", "benchmarks.data", stage, folder]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            seconds, peak = json.loads(done.stdout.splitlines()[-1])
            found |= {f"{stage}_seconds": round(seconds, 1), f"{stage}_mb": round(peak)}
    print(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in STAGES:
        run(sys.argv[1], Path(sys.argv[2]))
    else:
        size, *stages = sys.argv[1:] or ["100000"]
        main(int(size.replace(",", "")), stages or STAGES)
