"""A teacher behind a real server on this machine, from its settings to its store."""

import logging
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
import pytest
import torch
from ruamel.yaml import YAML
from tokenizers import AddedToken
from transformers import PhiConfig, PhiForCausalLM

from firstkd.data.examples import Example, read_examples
from firstkd.data.prompts import encode
from firstkd.data.settings import ChatSettings, PromptSettings
from firstkd.data.view import Viewer
from firstkd.errors import ArtifactError, ConfigError, SourceError, UnreachableError
from firstkd.files import read_json, read_json_lines, sha256_of
from firstkd.models.folders import load_model, load_tokenizer
from firstkd.models.init.server import ServerInit
from firstkd.models.scoring import score_questions
from firstkd.openai.teacher import ServedModel
from firstkd.settings import load_settings
from firstkd.signals.asked import AskedTeacher
from firstkd.signals.store import SignalStore
from tasks import evaluate, model, prepare
from tasks import signal as stage
from tasks.costs import asking_cost
from tasks.graph import write_graph
from tasks.tables import markdown_table
from tests.firstkd.signals.stores import CHOICES, TOKENS, capture_into
from tests.openai_server import EVERYTHING, NAME, OpenAIServer, answering
from tests.tasks.test_signal import ENVIRONMENT
from tests.tiny import permute_tokenizer, write_tiny_model, write_tiny_params, write_tiny_questions

TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
KEY = "sk-very-secret-0123456789"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Phi, whose bias makes it answer with one of the letters A to E, and a template."""
    folder = tmp_path_factory.mktemp("teacher")
    write_tiny_model(folder)
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|x|>")]})
    tokenizer.save_pretrained(folder)
    config = PhiConfig(
        vocab_size=401,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = PhiForCausalLM(config)
    letters = tokenizer.convert_tokens_to_ids([*"ABCDE"])
    with torch.no_grad():
        network.lm_head.bias[letters] = 12.0
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(teacher: Path) -> OpenAIServer:
    return OpenAIServer(teacher)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    write_tiny_params(root)
    shutil.copytree(teacher, root / "data/model/base")
    for name, seed in (("questions", 1), ("elsewhere", 2)):
        write_tiny_questions(root / f"data/fetch/{name}.jsonl", 80, seed)
    prepare.main(root)
    return root


@pytest.fixture
def project(inputs: Path, tmp_path: Path, server: OpenAIServer):
    """Make a project whose teacher is behind the server, with some settings of its own."""
    (tmp_path / "data/model").mkdir(parents=True)
    (tmp_path / "data/model/base").symlink_to(inputs / "data/model/base")
    (tmp_path / "data/prepare").symlink_to(inputs / "data/prepare")
    server.gives, server.key, server.busy, server.refused_behind = EVERYTHING, None, 0, None
    server.asked, server.seconds, server.most_at_once, server.longest = [], 0.0, 0, 512

    def make(**changed: Any) -> Path:
        write_tiny_params(tmp_path)
        yaml = YAML()
        params = yaml.load(tmp_path / "params.yaml")
        params["capture"]["shard_examples"] = 8
        init = {
            "kind": "server",
            "url": server.url,
            "model": NAME,
            "fingerprint": "seed 3",
            "tokenizer": "base",
            "ask": "texts",
            "retries": 2,
            **changed,
        }
        params["models"] = {
            "base": params["models"]["base"],
            "teacher": {"init": init},
            "start": {"init": {"kind": "prune", "of": "base", "layers": 1}},
            "first": params["models"]["first"],
        }
        if init["ask"] == "letters":
            del params["signals"]["tokens"], params["models"]["first"]["learn"]["tokens"]
        del params["train"]["finetune"]
        params["evaluate"]["models"], params["record"]["student"] = ["first"], "first"
        yaml.dump(params, tmp_path / "params.yaml")
        write_graph(tmp_path, load_settings(tmp_path / "params.yaml"))
        return tmp_path

    return make


def captured_here(teacher: Path, project: Path, kind: Any, prompt: PromptSettings) -> torch.Tensor:
    """The signal's records of the training questions, by the same model in this process."""
    examples = read_examples(project / "data/prepare/train.parquet")
    questions = encode(examples, load_tokenizer(teacher), prompt)
    network = load_model(teacher, "fp32")
    return capture_into(project / "here" / kind.kind, kind, network, questions).whole()


CLOZE = PromptSettings(format="cloze", max_length=256)


@pytest.mark.parametrize("way", ["prompt_logprobs", "echo"])
def test_texts_are_scored_as_they_would_be_here(project, server, teacher, way):
    server.gives = frozenset({way})
    with answering(server):
        root = project()
        model.main(root, "teacher")
        assert read_json(root / "data/model/teacher/server.json")["gives"] == {"texts": way}
        for name in ("choices", "tokens"):
            stage.main(root, name)
    expected = captured_here(teacher, root, CHOICES, CLOZE)
    store = SignalStore(root / "data/signal/choices/train")
    found = store.whole()
    assert torch.equal(found.counts, expected.counts)
    torch.testing.assert_close(
        found.columns["logprob"], expected.columns["logprob"], rtol=0, atol=1e-5
    )
    expected = captured_here(teacher, root, TOKENS, CLOZE)
    found = SignalStore(root / "data/signal/tokens/train").whole()
    for name, column in expected.columns.items():
        other = found.columns[name]
        if way == "prompt_logprobs" or not name.startswith("top"):
            difference = (other.double() - column.double()).abs()
            # float16 is stored; by its text a token may be unknown, and be a part of the tail
            ends = 2e-3 * column.double().abs().clamp_min(1)
            assert (difference <= ends).float().mean() > (0.99 if way == "prompt_logprobs" else 0.9)
    # one request a question: that of its choices
    paths = {path for path, _ in server.asked}
    assert paths == {"completions"}


def test_letters_are_what_a_chat_in_this_process_says(project, server, teacher):
    server.gives = frozenset({"letters"})
    with answering(server):
        root = project(ask="letters")
        model.main(root, "teacher")
        stage.main(root, "choices")
    chat = PromptSettings(format="chat", max_length=512, chat=ChatSettings(choices="letter"))
    expected = captured_here(teacher, root, CHOICES, chat).columns["logprob"]
    found = SignalStore(root / "data/signal/choices/train").whole().columns["logprob"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert server.most_at_once > 1


def test_a_view_is_put_before_the_question_as_turns(project, server):
    server.gives = frozenset({"letters"})
    with answering(server):
        root = project(ask="letters")
        yaml = YAML()
        params = yaml.load(root / "params.yaml")
        params["signals"]["choices"]["view"] = {"instructions": "Answer by letter.", "shots": 1}
        yaml.dump(params, root / "params.yaml")
        model.main(root, "teacher")
        server.asked = []
        stage.main(root, "choices")
    files = (root / f"data/prepare/{split}.parquet" for split in ("train", "calibration"))
    asked = [example.prompt for file in files for example in read_examples(file)]
    said = [body["messages"] for _, body in server.asked]
    found = [turns for turns in said if turns[-1]["content"].partition("\n")[0] in {*asked}]
    assert len(found) == len(asked)  # and what it gives was asked before
    for turns in found:
        assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user"]
        assert turns[0]["content"] == "Answer by letter."
        assert turns[2]["content"] in {*"ABCDE"}


def test_a_store_is_whole_and_the_same_after_the_server_has_gone_and_come_back(project, server):
    with answering(server):
        root = project()
        model.main(root, "teacher")
        server.asked = []
        stage.main(root, "choices")
        undisturbed = sha256_of(root / "data/signal/choices")
        answered = len(server.asked)
        shutil.rmtree(root / "data/signal")
        server.asked, server.refused_behind, server.busy = [], 30, 2
        with pytest.raises(UnreachableError, match=r"models\.teacher\.init: .* did not answer"):
            stage.main(root, "choices")
        port = int(server.url.rsplit(":", 1)[1].partition("/")[0])
    shards = len([*root.glob("data/.signal/*/train/*.safetensors")])  # of 8 questions each
    assert 0 < shards < 5 and not (root / "data/signal").exists()
    server.asked, server.refused_behind = [], None
    with answering(server, port):
        stage.main(root, "choices")
    assert sha256_of(root / "data/signal/choices") == undisturbed
    assert len(server.asked) == answered - 8 * shards  # nothing that was answered is asked again
    usage = read_json_lines(root / "logs/signal-choices/usage.jsonl")
    assert sum(line["retries"] for line in usage) > 0
    assert sum(line["prompt_tokens"] for line in usage) > 0


@pytest.mark.slow
def test_a_killed_stage_goes_on_and_gives_the_same_bytes(project, server):
    with answering(server):
        root = project()
        model.main(root, "teacher")
        stage.main(root, "tokens")
        undisturbed = sha256_of(root / "data/signal/tokens")
        shutil.rmtree(root / "data/signal")
        server.seconds = 0.05
        command = [sys.executable, "-m", "tasks.signal", "tokens"]
        process = subprocess.Popen(command, cwd=root, env=ENVIRONMENT)
        while len(list(root.glob("data/.signal/*/*/*.safetensors"))) < 2:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = {path: path.stat().st_mtime_ns for path in root.glob("data/.signal/*/*/*.saf*")}
        server.seconds = 0.0
        subprocess.run(command, cwd=root, env=ENVIRONMENT, check=True)
    assert sha256_of(root / "data/signal/tokens") == undisturbed
    for path, written in kept.items():
        final = root / "data/signal/tokens" / path.relative_to(path.parents[1])
        assert final.stat().st_mtime_ns == written


def test_the_key_is_sent_and_written_nowhere(project, server, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    server.key = KEY
    with answering(server):
        root = project(key="MY_TEACHER", price={"prompt": 2.0, "response": 6.0})
        with pytest.raises(ConfigError, match="asks for a key; set the environment variable MY_TE"):
            model.main(root, "teacher")
        monkeypatch.setenv("MY_TEACHER", KEY + "x")
        with pytest.raises(ConfigError, match="refuses the key in the environment variable MY_T"):
            model.main(root, "teacher")
        monkeypatch.setenv("MY_TEACHER", KEY)
        model.main(root, "teacher")
        stage.main(root, "choices")
    assert ", which cost 0." in caplog.text
    assert KEY not in caplog.text
    for path in root.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


def test_it_is_measured_as_it_would_be_here(project, server, teacher, caplog):
    caplog.set_level(logging.INFO)
    with answering(server):
        root = project(price={"prompt": 2.0, "response": 6.0})
        settings = YAML(typ="safe").load(root / "params.yaml")
        settings["evaluate"]["models"] = ["teacher", "first"]
        YAML().dump(settings, root / "params.yaml")
        model.main(root, "teacher")
        server.asked, server.refused_behind = [], 15
        with pytest.raises(UnreachableError):
            evaluate.main(root, "teacher")
        answered, server.refused_behind = len(server.asked), None
        port = int(server.url.rsplit(":", 1)[1].partition("/")[0])
    with answering(server, port):
        evaluate.main(root, "teacher")
    assert not list((root / "data/.evaluate").iterdir())
    files = [root / f"data/prepare/{name}.parquet" for name in ("calibration", "test")]
    files += root.glob("data/prepare/ood_*.parquet")
    counts = [len(read_examples(file)) for file in files]
    # eight questions a file were kept, and what the server gives was asked once more
    assert len(server.asked) - answered <= sum(counts) - 8 + 2
    found = pq.read_table(root / "data/evaluate/teacher/predictions.parquet").to_pylist()
    found = torch.tensor([row["scores"] for row in found if row["set"] == "test"])
    asked = encode(read_examples(files[1]), load_tokenizer(teacher), CLOZE)
    expected = score_questions(load_model(teacher, "fp32"), asked, 8).log_softmax(-1)
    torch.testing.assert_close(found.log_softmax(-1).float(), expected, rtol=0, atol=1e-5)
    measured = read_json(root / "data/evaluate/teacher/metrics.json")
    table = markdown_table({"teacher": measured})
    assert "| teacher |" in table and "behind a server" in table
    cost = asking_cost(root / "logs/evaluate-teacher")
    assert sum(counts) <= cost["requests"] <= sum(counts) + 6
    assert cost["cost"] == pytest.approx(
        (2 * cost["prompt_tokens"] + 6 * cost["response_tokens"]) / 1e6
    )
    assert f"{cost['prompt_tokens']:,} prompt tokens" in caplog.text


REFUSED: dict[str, tuple[dict[str, Any], frozenset[str], type[Exception], str]] = {
    "a server without log-probabilities of prompts": (
        {},
        EVERYTHING - {"prompt_logprobs", "echo"},
        ConfigError,
        "ask: texts: .* returns no log-probabilities for prompts .* set it to letters",
    ),
    "a server without any log-probabilities": (
        {"ask": "letters"},
        frozenset(),
        ConfigError,
        "returns no log-probabilities for answers of 'teacher-large'",
    ),
    "a model that is not there": (
        {"model": "other"},
        EVERYTHING,
        ConfigError,
        r"models\.teacher: model: .* has no 'other'; it has teacher-large",
    ),
    "a model that is not there and not listed": (
        {"model": "other"},
        EVERYTHING - {"models"},
        ConfigError,
        "has no 'other'",
    ),
    "a server that is not there": (
        {"url": "http://127.0.0.1:9/v1"},
        EVERYTHING,
        UnreachableError,
        r"http://127\.0\.0\.1:9/v1 did not answer .* start it or correct its url",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_server_cannot_give_is_said_in_one_line(project, server, case):
    changed, gives, kind, words = REFUSED[case]
    server.gives = gives
    with answering(server):
        root = project(**changed)
        with pytest.raises(kind, match=words) as told:
            model.main(root, "teacher")
    assert "\n" not in str(told.value)
    assert not (root / "data/model/teacher").exists()


@pytest.mark.parametrize("way", ["prompt_logprobs", "echo"])
def test_a_server_with_a_permuted_tokenizer_is_refused(project, server, inputs, tmp_path, way):
    server.gives = frozenset({way})
    with answering(server):
        root = project()
        (root / "data/model/base").unlink()
        shutil.copytree(inputs / "data/model/base", root / "data/model/base")
        permute_tokenizer(root / "data/model/base")
        with pytest.raises(ConfigError, match=r"tokenizer: .* 'base' has a different tok") as told:
            model.main(root, "teacher")
    assert "\n" not in str(told.value)


def test_a_server_that_gives_something_else_later_is_refused(project, server):
    with answering(server):
        root = project()
        model.main(root, "teacher")
        server.gives = EVERYTHING - {"prompt_logprobs"}
        with pytest.raises(ArtifactError, match=r"now gives .*'echo'.*, but gave .*prompt_logprob"):
            stage.main(root, "choices")


def test_a_question_that_the_server_refuses_is_named(project, server):
    with answering(server):
        root = project()
        model.main(root, "teacher")
        server.longest = 20
        with pytest.raises(SourceError, match=r"refuses example \S+ \(status 400\): .*too long"):
            stage.main(root, "choices")


def test_only_what_decides_the_answers_makes_the_store_stale(project, server):
    with answering(server):
        found = []
        for changed in ({}, {"parallel": 2, "retries": 9}, {"fingerprint": "seed 4"}):
            root = project(**changed)
            model.main(root, "teacher")
            found.append(sha256_of(root / "data/model/teacher"))
    assert found[0] == found[1] != found[2]


def test_examples_without_choices_have_no_records(project, server):
    open_text = Example("a/1", "Say where the bee lives.", "In a hive.", None, None, "a")
    with answering(server):
        root = project()
    tokenizer = load_tokenizer(root / "data/model/base")
    questions = encode([open_text], tokenizer, CLOZE)
    init = cast("ServerInit", load_settings(root / "params.yaml").models["teacher"].init)
    port = int(server.url.rsplit(":", 1)[1].partition("/")[0])
    with answering(server, port), ServedModel(init, tokenizer) as served:
        asked = AskedTeacher(served, {"texts": "prompt_logprobs"}, 401, Viewer(CLOZE))
        assert CHOICES.ask(asked, [open_text], questions).counts.tolist() == [0]
        tokens = len(questions[0].responses[0])
        assert TOKENS.ask(asked, [open_text], questions).counts.tolist() == [tokens]
