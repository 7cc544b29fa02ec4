"""Processor time and peak memory of `prepare` and `validate` over many short questions.

Each stage runs in a separate process, on a project whose model is tiny, so that the questions are
what shows. Prints one JSON line; seconds are processor time, which a busy machine does not change.

Run as  python -m benchmarks.data [QUESTIONS]   (default 100,000)
"""

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ruamel.yaml import YAML

from tests.tiny import REPOSITORY, write_tiny_model

STAGES = ("prepare", "validate")
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
    write_tiny_model(root / "data/model/base")
    yaml = YAML()
    params = yaml.load(REPOSITORY / "params.yaml")
    source = {"source": "path:sources/made.jsonl", "format": "questions", "role": "split"}
    params["fetch"]["datasets"] = {"made": source}
    params["models"]["start"]["init"]["layers"] = 1
    yaml.dump(params, root / "params.yaml")


def run(stage: str, root: Path) -> None:
    """Run one stage and print its seconds and the peak memory of this process in MB."""
    if stage == "prepare":
        from tasks.prepare import main
    else:
        from tasks.validate import main
    started = time.process_time()
    main(root)
    seconds = time.process_time() - started
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def main(count: int) -> None:
    found: dict[str, float] = {"questions": count}
    with tempfile.TemporaryDirectory() as folder:
        write_project(Path(folder), count)
        for stage in STAGES:
            command = [sys.executable, "-m", "benchmarks.data", stage, folder]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            seconds, peak = json.loads(done.stdout.splitlines()[-1])
            found |= {f"{stage}_seconds": round(seconds, 1), f"{stage}_mb": round(peak)}
    print(json.dumps(found))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        run(sys.argv[1], Path(sys.argv[2]))
    else:
        main(int(sys.argv[1].replace(",", "")) if len(sys.argv) == 2 else 100_000)
