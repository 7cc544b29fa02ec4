"""What each way to distil buys: all arms over several seeds, on data files as published.

    python -m benchmarks.arms --data DIR --dataset commonsenseqa --transfer openbookqa [--ablations]

trains on the data set's own training file and tests on its development or test file, and on the
other set's as transfer. DIR holds a folder per data set with its files, .gz or not. Model, prompt
and training are those of params.yaml. Each seed is a project of its own under --work, made by
`dvc repro`: what is finished is kept, and the same command goes on where it was interrupted.
Prints progress and tables, then one JSON line; writes that and a reliability diagram per test set.

Values are means over seeds; intervals are 95 % bootstrap intervals over seeds and
questions together, of differences too, for which both arms are drawn alike.
"""

import argparse
import gzip
import json
import shutil
import sys
from collections.abc import Sequence
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

FILES = {
    "commonsenseqa": ("commonsenseqa", "train_rand_split.jsonl", "dev_rand_split.jsonl"),
    "openbookqa": ("commonsenseqa", "train.jsonl", "test.jsonl"),
    "boolq": ("boolq", "train.jsonl", "dev.jsonl"),
}
"""Format, and files to train and to test on."""


def distilled(recalibrate: str, **tokens: Any) -> dict[str, Any]:
    """Return the terms of `first`, of params.yaml, from signals recalibrated otherwise."""
    return {
        "choices": {"kind": "choice_kl", "from": "choices", "recalibrate": recalibrate},
        "tokens": {
            "kind": "sparse_kl",
            "from": "tokens",
            "recalibrate": recalibrate,
            "weight": {"from": 0.5, "to": 0},
            **tokens,
        },
    }


ARMS: dict[str, dict[str, Any]] = {
    "sft": {"gold": {}},
    "choice_sft": {"gold_choice": {}},
    "direct": distilled("none"),
    "first": distilled("temperature"),
    "first_paper": distilled("paper", tail="renormalise"),
    "label_smoothing": distilled("label_smoothing"),
}
"""What each student learns from."""
ABLATIONS: dict[str, dict[str, Any]] = {  # one thing of `first` changed in each
    "first_renormalise": distilled("temperature", tail="renormalise"),
    "first_isotonic": distilled("isotonic"),
    "first_platt": distilled("platt"),
    "first_choices": {"choices": distilled("temperature")["choices"]},
    "first_tokens": {"tokens": distilled("temperature", weight=1.0)["tokens"]},
}
EXAMPLES = {"train": 600, "calibration": 250, "test": 600, "out_of_domain": 500}
SAMPLES = 2000
SHOWN = ("accuracy", "nll", "brier", "auroc", "aurc", "accuracy_at_25", "ece")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.arms")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--dataset", choices=FILES, required=True)
    parser.add_argument("--transfer", choices=FILES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("logs/arms"))
    parser.add_argument("--ablations", action="store_true")
    given = parser.parse_args()
    work = given.work.resolve() / given.dataset
    arms = ARMS | (ABLATIONS if given.ablations else {})
    roots = [work / f"seed-{seed}" for seed in range(given.seeds)]
    for seed, root in enumerate(roots):
        write_project(root, seed, arms, given.data, given.dataset, given.transfer)
    # an arm's seeds one after another: what is there can be compared from early on
    cells = [(name, root) for name in ["teacher", *arms] for root in roots]
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
        diagrams = {name: pooled(seeds, name, test_set) for name in ["teacher", *ARMS]}
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


def write_project(
    root: Path,
    seed: int,
    arms: dict[str, dict[str, Any]],
    data: Path,
    dataset: str,
    transfer: str | None,
) -> None:
    """Write a project that trains every arm from one seed, in place of what is there."""
    params = YAML().load(REPOSITORY / "params.yaml")
    data_format, *files = FILES[dataset]
    chosen = [(dataset, data_format, files[0], "train"), (dataset, data_format, files[1], "test")]
    if transfer:
        chosen.append((transfer, FILES[transfer][0], FILES[transfer][2], "out_of_domain"))
    params["fetch"]["datasets"] = {
        f"{name}_{role}" if role != "out_of_domain" else name: {
            "source": f"path:{unpacked(data / name / file, root / 'sources' / name)}",
            "format": kind,
            "role": role,
        }
        for name, kind, file, role in chosen
    }
    params["prepare"] = {
        "fractions": {"train": 0.6, "calibration": 0.3, "test": 0.1},
        "max_examples": EXAMPLES,
    }
    params["prompt"]["max_length"] = 1280  # BoolQ's passages; the others' questions are short
    params["validate"]["max_prompt_tokens"] = 1200
    params["runtime"]["seed"] = seed
    models = params["models"]
    params["models"] = {name: models[name] for name in ("base", "teacher", "start")}
    for name, learn in arms.items():
        init = {"kind": "copy", "of": "start"}
        params["models"][name] = {"init": init, "train": "distill", "learn": learn}
    params["evaluate"]["models"] = ["teacher", *arms]
    project.write(root, params)


def unpacked(file: Path, folder: Path) -> str:
    """Put a data file into the project's sources and return its path there."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / file.name
    packed = file.with_name(f"{file.name}.gz")
    if packed.exists():
        target.write_bytes(gzip.decompress(packed.read_bytes()))
    else:
        shutil.copy(file, target)
    return str(target.relative_to(folder.parents[1]))


def measured(seeds: Sequence[dict[str, Evaluated]], name: str, test_set: str) -> Measured:
    """A model's metrics as it is and with its own temperature, and its differences to `first`."""
    ours = [models[name] for models in seeds]
    theirs = [models[REFERENCE] for models in seeds]
    raw = [model.raw(test_set) for model in ours]
    own = [model.calibrated(test_set) for model in ours]
    found = {"raw": summary(raw), "calibrated": summary(own)}
    if name != REFERENCE:
        found["raw_less_first"] = summary(raw, [model.raw(test_set) for model in theirs])
        found["calibrated_less_first"] = summary(
            own, [model.calibrated(test_set) for model in theirs]
        )
    return found


def summary(
    ours: Sequence[Predictions], theirs: Sequence[Predictions] | None = None
) -> dict[str, Estimate]:
    """Mean over seeds, less the mean of theirs, with its interval over seeds and questions.

    Each sample draws seeds and, for all of them, questions.
    """
    # first the data themselves, of which each seed counts once, as `resample` asks for them
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
    """All seeds' predictions in one, for a diagram."""
    return Predictions.concatenate(models[name].raw(test_set) for models in seeds)


if __name__ == "__main__":
    main()
