"""A student that learns what a teacher behind a real server says, from settings to weights."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from firstkd.data.examples import Example, read_examples, write_examples
from firstkd.data.prompts import encode
from firstkd.data.settings import PromptSettings
from firstkd.errors import ConfigError, UnreachableError
from firstkd.files import read_json_lines, sha256_of
from firstkd.models.folders import load_model, load_tokenizer
from firstkd.open_text.decoding import Draw, decode
from firstkd.settings import load_settings
from firstkd.signals.store import SignalStore
from tasks import model
from tasks import signal as stage
from tasks.preflight import check_own_text
from tasks.said import as_said
from tests.firstkd.signals.stores import TOKENS, capture_into
from tests.openai_server import NAME, OpenAIServer, answering
from tests.tiny import (
    CHAT_TEMPLATE,
    open_questions,
    write_talker,
    write_tiny_model,
    write_tiny_params,
)

CHAT = PromptSettings(format="chat", max_length=128)
LONGEST = 8


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny chat model that gives some of the answers."""
    start, folder = (tmp_path_factory.mktemp(name) for name in ("start", "teacher"))
    write_tiny_model(start)
    tokenizer = load_tokenizer(start)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(start)
    write_talker(start, folder, CHAT)
    return folder


@pytest.fixture(scope="module")
def server(teacher: Path) -> OpenAIServer:
    return OpenAIServer(teacher)


@pytest.fixture
def root(tmp_path: Path, teacher: Path, server: OpenAIServer) -> Path:
    shutil.copytree(teacher, tmp_path / "data/model/base")
    chosen = Example("q/c", "Where is it?", "here", ("here", "there"), 0, "q")
    unanswered = Example("q/u", "Where does the old fox live?", "", None, None, "q")
    for split, examples in (
        ("train", [*open_questions(20, seed=1), chosen, unanswered]),
        ("calibration", open_questions(8, seed=2)),
    ):
        found = [replace(example, split=split) for example in examples]
        write_examples(tmp_path / f"data/prepare/{split}.parquet", found)
    server.tells_end, server.refused_behind, server.asked = True, None, []
    write_params(tmp_path, server.url or "http://127.0.0.1:9/v1")
    return tmp_path


def write_params(root: Path, url: str) -> None:
    write_tiny_params(root)
    params: Any = YAML().load(root / "params.yaml")
    params["prompt"] = {"format": "chat", "max_length": 128, "chat": None}
    params["capture"]["shard_examples"] = 6
    params["models"] = {
        "base": params["models"]["base"],
        "teacher": {
            "init": {
                "kind": "server",
                "url": url,
                "model": NAME,
                "fingerprint": "trained here",
                "tokenizer": "base",
                "ask": "letters",
                "retries": 0,
            }
        },
        "first": {
            "init": {"kind": "copy", "of": "base"},
            "train": "distill",
            "learn": {"tokens": {"kind": "sparse_kl", "from": "said", "recalibrate": "none"}},
        },
    }
    select = {"kind": "top_k", "k": 5}
    said = {"kind": "answers", "of": "teacher", "select": select, "max_new_tokens": LONGEST}
    params["signals"] = {"said": said}
    del params["train"]["finetune"]
    params["evaluate"]["models"], params["record"]["student"] = ["first"], "first"
    YAML().dump(params, root / "params.yaml")


def changed(root: Path, change: Any) -> None:
    params = YAML().load(root / "params.yaml")
    change(params)
    YAML().dump(params, root / "params.yaml")


def captured(root: Path, server: OpenAIServer) -> None:
    with answering(server):
        write_params(root, server.url)
        model.main(root, "teacher")
        stage.main(root, "said")


@pytest.mark.parametrize("tells_end", [True, False])
def test_what_is_kept_is_what_the_model_says_here(root, server, teacher, tells_end):
    server.tells_end = tells_end
    captured(root, server)
    examples = read_examples(root / "data/prepare/train.parquet")
    network, tokenizer = load_model(teacher, "fp32"), load_tokenizer(teacher)
    is_open = torch.tensor([example.choices is None for example in examples])
    asked = encode([replace(e, response="", choices=None) for e in examples], tokenizer, CHAT)
    written = decode(network, [Draw(q.prompt, 0, 0, 0) for q in asked], {2}, LONGEST, 8, 4096)
    store = SignalStore(root / "data/signal/said/train")
    found = store.whole()
    # greedy text is nearly always cut as it was written
    assert ((found.counts > 0) & is_open).sum() >= 0.8 * is_open.sum()
    assert not found.counts[~is_open].any()
    kept = found.columns["token"].split(found.counts.tolist())
    settings = load_settings(root / "params.yaml")
    said = as_said(root, settings, {"first": settings.models["first"]}, examples, tokenizer)
    answered = [i for i, ids in enumerate(kept) if len(ids)]
    for i in answered:
        assert kept[i].tolist() == said[i].responses[0] == written[i].ids
        assert said[i].prompt == asked[i].prompt
    here = capture_into(root / "here", TOKENS, network, [said[i] for i in answered]).whole()
    own = found.columns["token"]
    certain = (own == 2) & (not tells_end)
    for name, column in here.columns.items():
        expected = column.double()[~certain]
        differs = (found.columns[name].double()[~certain] - expected).abs()
        # float16 is stored; tokens that share their text are a part of the tail
        assert (differs <= 2e-3 * expected.abs().clamp_min(1)).double().mean() > 0.9
    if certain.any():
        assert (found.columns["top_ids"].long()[certain][:, 0] == 2).all()
        assert not found.columns["top_logprobs"][certain][:, 0].any()


def test_a_student_learns_what_was_said(root, server):
    captured(root, server)

    def weaker(params: Any) -> None:
        params["models"]["weak"] = {"init": {"kind": "prune", "of": "base", "layers": 1}}
        params["models"]["first"]["init"]["of"] = "weak"
        params["train"]["distill"] |= {"epochs": 12, "learning_rate": 3e-3}

    changed(root, weaker)
    model.main(root, "weak")
    model.main(root, "first")
    curve = read_json_lines(root / "data/model/first/training.jsonl")
    assert 0 < curve[-1]["tokens"] < 0.5 * curve[0]["tokens"]


def test_what_was_answered_is_not_asked_again(root, server):
    captured(root, server)
    undisturbed, answers = sha256_of(root / "data/signal/said"), len(server.asked)
    shutil.rmtree(root / "data/signal")
    server.asked, server.refused_behind = [], 12
    with answering(server):
        write_params(root, server.url)
        with pytest.raises(UnreachableError):
            stage.main(root, "said")
        port = int(server.url.rsplit(":", 1)[1].partition("/")[0])
    server.asked, server.refused_behind = [], None
    with answering(server, port):
        stage.main(root, "said")
    assert sha256_of(root / "data/signal/said") == undisturbed
    assert len(server.asked) < answers


def test_a_server_of_another_tokenizer_is_refused(root, server):
    write_tiny_model(root / "other", vocabulary=300)
    tokenizer = load_tokenizer(root / "other")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(root / "data/model/base")
    with pytest.raises(
        ConfigError, match=r"splits \d+ of \d+ answers into different tokens than 'base'"
    ):
        captured(root, server)


REFUSED = {
    "a model that is here": (
        lambda params: params["signals"]["said"].update(of="base"),
        "'base' is not behind a server",
    ),
    "more than servers give": (
        lambda params: params["signals"]["said"]["select"].update(k=21),
        "a server returns at most 20 tokens, not 21",
    ),
    "a recalibration": (
        lambda params: params["models"]["first"]["learn"]["tokens"].update(recalibrate="paper"),
        "whose answers nobody has judged; set recalibrate: none",
    ),
    "pieces of text": (
        lambda params: params["models"]["first"]["learn"].update(
            tokens={"kind": "alm", "from": "said"}
        ),
        "use sparse_kl",
    ),
    "plain text": (
        lambda params: params["prompt"].update(format="cloze"),
        "set prompt.format to chat",
    ),
    "choices beside it": (
        lambda params: (
            params["signals"].update(choices={"kind": "choices", "of": "teacher"}),
            params["models"]["first"]["learn"].update(
                choices={"kind": "choice_kl", "from": "choices"}
            ),
        ),
        "signals.choices about other answers; use separate models",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_said_in_one_line(root, case):
    change, words = REFUSED[case]
    changed(root, change)
    with pytest.raises(ConfigError, match=words) as told:
        check_own_text(load_settings(root / "params.yaml"))
    assert "\n" not in str(told.value)
