"""The examples are whole, valid settings, and differ from the shipped ones only where they say."""

import json
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from benchmarks import recipe_cost
from firstkd.answering import Answerer
from firstkd.data.examples import read_examples
from firstkd.files import read_json_lines
from firstkd.serving.batching import Served
from firstkd.settings import load_settings
from tasks import fetch, prepare
from tasks.graph import stages_of
from tests.firstkd.serving.servers import Registry, ask, serving
from tests.firstkd.serving.servers import settings as settings_of_serving
from tests.openai_server import NAME, OpenAIServer, answering
from tests.tiny import (
    CHAT_TEMPLATE,
    REPOSITORY,
    shrink,
    write_tiny_conversations,
    write_tiny_model,
    write_tiny_questions,
)

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.yaml"))
OTHER_DATA = {"openbookqa"}
"""What differs from the shipped settings in its data alone; the others are recipes."""
CONVERSATIONS = "conversations"
"""Differs in its data, and in what goes with them."""
RECIPES = [path for path in EXAMPLES if path.stem not in {*OTHER_DATA, CONVERSATIONS}]


def load(path: Path) -> Any:
    return YAML(typ="safe").load(path)


def named(path: Path) -> str:
    return path.stem


def test_there_are_examples() -> None:
    assert RECIPES and len(RECIPES) + len(OTHER_DATA) + 1 == len(EXAMPLES)


@pytest.mark.parametrize("path", EXAMPLES, ids=named)
def test_an_example_differs_from_the_shipped_settings_only_where_it_says(path: Path) -> None:
    shipped, example = load(REPOSITORY / "params.yaml"), load(path)
    for settings in (shipped, example):
        if path.stem in OTHER_DATA:
            del settings["fetch"]["datasets"], settings["prepare"]["max_examples"]
        else:
            del settings["evaluate"]["models"], settings["record"]["student"]
            settings["evaluate"].pop("ensembles", None)
            settings["train"] = settings["train"]["distill"]
            del settings["models"], settings["signals"]
            settings.pop("exports", None)
            settings["promote"].pop("max_export_drop", None)  # which needs exports
        if path.stem == CONVERSATIONS:
            del settings["prompt"], settings["fetch"], settings["evaluate"]["open_text"]
            for key in ("micro_batch_size", "micro_batch_tokens", "micro_batches_per_step"):
                del settings["train"][key]  # its texts are longer
            limits = ("max_prompt_tokens", "max_response_tokens")
            settings["validate"] = {
                k: v for k, v in settings["validate"].items() if k not in limits
            }
    assert example == shipped


@pytest.mark.parametrize("path", EXAMPLES, ids=named)
def test_what_an_example_does_not_use_it_does_not_have(path: Path) -> None:
    settings = load_settings(path)
    trainings = {model.train for model in settings.models.values() if model.train}
    learned = {signal for model in settings.models.values() for signal in model.signals}
    pooled = {name for signal in settings.signals.values() for name in signal.signals}
    assert set(settings.train) == trainings
    assert set(settings.signals) == learned | pooled


@pytest.mark.parametrize("path", EXAMPLES, ids=named)
def test_an_example_says_what_it_costs(path: Path) -> None:
    minutes = recipe_cost.minutes(load_settings(path))
    assert f"# Training and captures take about {minutes:.1f} GPU minutes" in path.read_text(
        encoding="utf-8"
    )


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the examples are run on: two tiny models with tokenizers of their own, questions."""
    folder = tmp_path_factory.mktemp("sources")
    write_tiny_model(folder / "model")
    write_tiny_model(folder / "student", layers=1, vocabulary=350)
    write_tiny_questions(folder / "questions.jsonl", 80, seed=1)
    write_tiny_questions(folder / "elsewhere.jsonl", 20, seed=2)
    return folder


@pytest.fixture(scope="module")
def server(sources: Path) -> Iterator[OpenAIServer]:
    """The tiny model, behind a server."""
    with answering(OpenAIServer(sources / "model")) as found:
        yield found


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=named)
def test_a_recipe_runs_from_its_sources_to_its_report(
    path: Path, sources: Path, server: OpenAIServer, tmp_path: Path
) -> None:
    yaml = YAML()
    params = yaml.load(path)
    shrink(params)
    for model in params["models"].values():
        if model["init"]["kind"] == "server":
            model["init"] |= {"url": server.url, "model": NAME}
    yaml.dump(params, tmp_path / "params.yaml")
    (tmp_path / "tasks").symlink_to(REPOSITORY / "tasks")  # the report's templates
    shutil.copytree(sources, tmp_path / "sources")
    settings = load_settings(tmp_path / "params.yaml")
    for stage in stages_of(settings):
        _, _, module, *values = stage.command.split()
        import_module(module).main(tmp_path, *values)
        assert all((tmp_path / output).exists() for output in stage.outputs), stage.name
    for name, model in settings.models.items():
        if model.learn is not None:
            curve = read_json_lines(tmp_path / f"data/model/{name}/training.jsonl")
            assert curve and all(term in point for point in curve for term in model.learn)
    measured = {folder.name for folder in (tmp_path / "data/evaluate").iterdir()}
    assert measured == set(settings.evaluate.models)


@pytest.fixture(scope="module")
def conversed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example of conversations, run from raw messages to its report."""
    root, yaml = tmp_path_factory.mktemp("conversed"), YAML()
    params = yaml.load(REPOSITORY / "examples/conversations.yaml")
    datasets = params["fetch"]["datasets"]
    shrink(params)
    params["fetch"]["datasets"] = datasets
    params["prompt"]["max_length"] = 128
    params["train"]["finetune"].update(epochs=12, learning_rate=5e-3)
    params["evaluate"]["open_text"]["max_new_tokens"] = 16
    params["serve"]["policy"] = {"max_error": 0.5, "confidence": 0.5}
    yaml.dump(params, root / "params.yaml")
    (root / "tasks").symlink_to(REPOSITORY / "tasks")
    write_tiny_model(root / "sources/model")
    (root / "sources/model/chat_template.jinja").write_text(CHAT_TEMPLATE)
    write_tiny_conversations(root / "sources/conversations.jsonl", 60)
    for stage in stages_of(load_settings(root / "params.yaml")):
        _, _, module, *values = stage.command.split()
        import_module(module).main(root, *values)
    return root


@pytest.mark.slow
def test_conversations_alone_run_from_raw_messages_to_a_report(conversed: Path) -> None:
    prepared = read_examples(conversed / "data/prepare/test.parquet")
    assert {bool(example.history) for example in prepared} == {True, False}
    assert json.loads((conversed / "data/prepare/summary.json").read_text())["dropped"][
        "skipped"
    ] == {"conversations": {"tool_calls": 1}}
    table = json.loads((conversed / "data/report/table.json").read_text())
    assert {(row["model"], row["set"]) for row in table} == {
        (model, "test") for model in ("teacher", "sft", "first")
    }
    differences = json.loads((conversed / "data/report/differences.json").read_text())
    assert all({"AURC", "ROUGE-L", "chrF"} <= each["differences"].keys() for each in differences)
    page = (conversed / "data/report/index.html").read_text()
    assert page.count("ROUGE-L") >= 2 and "the models' own words against the right ones" in page
    found = json.loads((conversed / "data/evaluate/teacher/metrics.json").read_text())
    assert 0 < found["sets"]["test"]["text"]["rouge_l"]["value"] <= 1
    assert found["open_text"]["test"]["tokens"] > found["open_text"]["test"]["examples"]


@pytest.mark.slow
def test_a_chat_student_is_served_with_calibrated_confidence(conversed: Path) -> None:
    model, evaluated = conversed / "data/model/teacher", conversed / "data/evaluate/teacher"
    answerer = Answerer.load(model, evaluated / "calibration.json")
    with serving(Registry(Served("student v1", answerer)), settings_of_serving()) as client:
        [told, other] = ask(client, *[{"question": "Where does the red fox live?"}] * 2)
        health = client.get("/health").json()
    [expected] = answerer.answer(["Where does the red fox live?"], [None])
    assert told == other and told["route"] == ("abstained" if expected.abstain else "answered")
    assert (told["guess"], told["guess_confidence"]) == (
        expected.answer,
        pytest.approx(expected.confidence, rel=1e-4),
    )
    assert health["promise"] == str(answerer.thresholds[0].promise)


def write_questions(path: Path, count: int) -> None:
    """In the layout of OpenBookQA's authors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lines:
        for number in range(count):
            choices = [{"text": f"at {place}", "label": place} for place in "ABCD"]
            question = {"stem": f"{path.stem}: where is {number}", "choices": choices}
            record = {"id": f"{path.stem}-{number}", "question": question, "answerKey": "C"}
            lines.write(json.dumps(record) + "\n")


def test_openbookqa_is_read_and_split_as_its_head_says(tmp_path: Path) -> None:
    """On files of the same layout, not of its content: without the checksums of the real ones."""
    yaml = YAML()
    params = yaml.load(REPOSITORY / "examples/openbookqa.yaml")
    datasets = params["fetch"]["datasets"]
    del datasets["commonsenseqa"]  # which would have to be downloaded
    for dataset in datasets.values():
        del dataset["sha256"]
        write_questions(tmp_path / dataset["source"].removeprefix("path:"), 80)
    yaml.dump(params, tmp_path / "params.yaml")
    settings = load_settings(tmp_path / "params.yaml")
    for name, dataset in settings.fetch.datasets.items():
        fetch.fetch_dataset(name, dataset, tmp_path / "data/fetch", tmp_path)
    prepare.main(tmp_path)
    sizes = {}
    for split in prepare.SPLITS:
        examples = read_examples(tmp_path / f"data/prepare/{split}.parquet")
        sizes[split] = len(examples)
        assert {example.source for example in examples} == {
            "openbookqa_test" if split == "test" else "openbookqa"
        }
    assert sizes["test"] == 80 and sizes["train"] + sizes["calibration"] == 80
