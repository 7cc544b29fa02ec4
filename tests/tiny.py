"""Small real things for tests: a Llama of two layers, questions it can learn, a whole project."""

import json
import os
import random
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from firstkd.data.examples import Example
from firstkd.data.settings import PromptSettings
from firstkd.settings import load_settings
from tasks.graph import write_graph

REPOSITORY = Path(__file__).parent.parent

HOMES = {
    "fox": "in a den",
    "bee": "in a hive",
    "bird": "in a nest",
    "fish": "in the sea",
    "mole": "under the ground",
    "camel": "in the desert",
    "bear": "in a cave",
    "horse": "in a stable",
}
ADJECTIVES = [
    "red",
    "old",
    "small",
    "happy",
    "tired",
    "young",
    "grey",
    "quick",
    "brave",
    "shy",
    "loud",
    "calm",
]
ASKED = ["Where does the {} {} live?", "Where will you find the {} {}?", "The {} {} sleeps"]


def write_tiny_questions(path: Path, count: int, seed: int) -> None:
    """Write questions whose animal decides the answer; no two, nor two seeds, share one.

    At most 288 of them.
    """
    draw = random.Random(seed)
    records = []
    for asked, adjective, animal in draw.sample([*product(ASKED, ADJECTIVES, HOMES)], count):
        wrong = [home for home in HOMES.values() if home != HOMES[animal]]
        choices = [HOMES[animal], *draw.sample(wrong, 3)]
        draw.shuffle(choices)
        question = f"Story {seed}: {asked.format(adjective, animal)}"
        records.append({"question": question, "choices": choices, "answer": HOMES[animal]})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_tiny_model(folder: Path, layers: int = 2, vocabulary: int = 400) -> None:
    """Write a random Llama (hidden size 32, float32) and a byte-level BPE tokenizer."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    write_tiny_questions(folder / "text", 200, seed=0)
    text = (folder / "text").read_text(encoding="utf-8")
    (folder / "text").unlink()
    trained = ByteLevelBPETokenizer()
    special = ["<pad>", "<s>", "</s>"]
    trained.train_from_iterator(
        text.splitlines(), vocab_size=vocabulary, special_tokens=special, show_progress=False
    )
    PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)


def one_right(answer_index: np.ndarray, num_choices: int) -> np.ndarray:
    """[E, C], True at each answer's index alone."""
    return np.asarray(np.arange(num_choices) == answer_index[:, None])


def permute_tokenizer(folder: Path) -> None:
    """Give the tokens of a tiny model's tokenizer one another's ids, but not the special ones."""
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_bytes())
    vocabulary = tokenizer["model"]["vocab"]
    special = {token["id"] for token in tokenizer["added_tokens"]}
    others = [token for token, i in vocabulary.items() if i not in special]
    ids = [vocabulary[token] for token in others]
    vocabulary.update(zip(others, [*ids[1:], ids[0]], strict=True))
    file.write_text(json.dumps(tokenizer), encoding="utf-8")


CHAT_TEMPLATE = """\
{% for message in messages %}<s>{{ message.role }}
{{ message.content }}</s>{% endfor %}{% if add_generation_prompt %}<s>assistant
{% endif %}"""
"""Of the tiny model, from control tokens that it has."""


def write_tiny_conversations(path: Path, count: int) -> None:
    """Write conversations of one turn or two, and one that calls a tool."""
    examples = open_questions(2 * count, seed=5)
    lines = []
    for number in range(count):
        turns = [examples[2 * number + i] for i in range(1 + number % 2)]
        said = [
            {"role": role, "content": text}
            for turn in turns
            for role, text in (("user", turn.prompt), ("assistant", turn.response))
        ]
        lines.append({"messages": said})
    tool = {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}
    lines.append({"messages": [{"role": "user", "content": "What is the time?"}, tool]})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def open_questions(count: int, seed: int) -> list[Example]:
    """Return tiny questions without choices."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "questions.jsonl")
        write_tiny_questions(path, count, seed)
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Example(f"q/{seed}-{i}", record["question"], record["answer"], None, None, "q")
        for i, record in enumerate(records)
    ]


CLOZE = PromptSettings(format="cloze", max_length=128)


def write_talker(model_folder: Path, folder: Path, prompt: PromptSettings = CLOZE) -> None:
    """Fine-tune a tiny model until it gives some of the answers, and write it to a folder."""
    import torch

    from firstkd.data.packing import pack
    from firstkd.data.prompts import encode
    from firstkd.models.folders import load_model, load_tokenizer
    from firstkd.models.scoring import ResponseScorer

    model, tokenizer = load_model(model_folder, "fp32"), load_tokenizer(model_folder)
    examples = open_questions(64, seed=3)
    questions = encode(examples, tokenizer, prompt)
    batch = pack(questions, range(len(questions))).to(model.device)
    scorer = ResponseScorer(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = -scorer(batch).logprobs_M.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_tiny_project(root: Path) -> dict[str, str]:
    """Write a project that runs the shipped pipeline on the tiny model and 80 questions.

    Returns the environment in which its commands run: `dvc repro` finds this very Python.
    """
    for package in ("tasks", "firstkd"):
        shutil.copytree(
            REPOSITORY / package, root / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    write_tiny_model(root / "sources/model")
    write_tiny_questions(root / "sources/questions.jsonl", 80, seed=1)
    write_tiny_questions(root / "sources/elsewhere.jsonl", 20, seed=2)
    write_tiny_params(root)
    write_graph(root, load_settings(root / "params.yaml"))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DVC_SITE_CACHE_DIR": str(root / ".dvc-site"),
        "DVC_NO_ANALYTICS": "1",
    }
    command = [sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"]
    subprocess.run(command, cwd=root, env=environment, check=True)
    return environment


def write_tiny_params(root: Path) -> None:
    """Write the shipped params.yaml with small numbers and the sources of the tiny project.

    Its models learn of choices and of tokens, and its student from signals that are recalibrated,
    so that what is fitted to them matters.
    """
    yaml = YAML()
    params = yaml.load(REPOSITORY / "params.yaml")
    for name in ("teacher", "sft"):
        params["models"][name]["learn"] = {
            "right": {"kind": "gold_choice"},
            "gold": {"kind": "gold", "weight": {"from": 0.5, "to": 0}},
        }
    params["models"]["first"]["learn"] = {
        "choices": {"kind": "choice_kl", "from": "choices"},
        "tokens": {"kind": "sparse_kl", "from": "tokens", "weight": {"from": 0.5, "to": 0}},
        "right": {"kind": "gold_choice", "weight": 0.5},
    }
    params["signals"] = {
        "choices": {"kind": "choices", "of": "teacher"},
        "tokens": {"kind": "tokens", "of": "teacher", "select": {"kind": "top_k", "k": 5}},
    }
    shrink(params)
    yaml.dump(params, root / "params.yaml")


def shrink(params: Any) -> None:
    """Give any params.yaml the tiny project's sources and numbers that run in seconds.

    Models that are to lie in sources/ keep their place there.
    """
    for model in params["models"].values():
        init = model["init"]
        if init["kind"] == "prune":
            init["layers"] = 1
        elif init["kind"] == "narrow":
            init["intermediate_size"] = 24
        elif init["kind"] == "source" and not init["source"].startswith("path:"):
            model["init"] = {"kind": "source", "source": "path:sources/model"}
    params["fetch"]["datasets"] = {
        "questions": {
            "source": "path:sources/questions.jsonl",
            "format": "questions",
            "role": "split",
        },
        "elsewhere": {
            "source": "path:sources/elsewhere.jsonl",
            "format": "questions",
            "role": "out_of_domain",
        },
    }
    params["prepare"]["fractions"] = {"train": 0.5, "calibration": 0.25, "test": 0.25}
    params["validate"]["min_examples"] = {"train": 10, "calibration": 5, "test": 5}
    params["validate"]["min_answer_share"] = 0
    for training in params["train"].values():
        training.update({"epochs": 1, "micro_batch_size": 8, "precision": "fp32"})
        training["micro_batches_per_step"] = 1
        if training["schedule"].get("data"):
            training["schedule"]["data"] = ["questions"]
    params["capture"]["precision"] = "fp32"
    params["runtime"]["threads"] = 1
    params["retrain"]["retry_delay_seconds"] = 0
    params["evaluate"]["bootstrap_samples"] = 100
    params["calibrate"]["bootstrap_samples"] = 100
    params["promote"]["max_ece"] = 1.0  # what so small a student shows is chance
    params["promote"]["min_share_of_teacher"] = 0.0
    params["promote"]["require_better_than_guessing"] = False
    params["promote"]["require_reproducible"] = False  # the project is outside git
