"""A model that writes questions like those that it is shown, from its start to the splits."""

import json
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from firstkd.data.examples import normalise, read_examples
from firstkd.data.written import Asked, shown_questions
from firstkd.errors import ConfigError, DataValidationError
from firstkd.files import read_json, sha256_of
from firstkd.models.folders import load_model, load_tokenizer
from firstkd.open_text.decoding import decode
from firstkd.settings import load_settings
from tasks import prepare, write
from tasks.graph import stages_of
from tests.tiny import open_questions, write_tiny_model, write_tiny_params, write_tiny_questions

pytestmark = pytest.mark.slow


def write_params(root: Path, **write: object) -> None:
    write_tiny_params(root)
    yaml = YAML()
    params = yaml.load(root / "params.yaml")
    more = {"by": "base", "like": "questions", "draws": 40, "shots": 2, "max_new_tokens": 64}
    params["write"] = {"more": {**more, **write}}
    yaml.dump(params, root / "params.yaml")


def write_author(folder: Path) -> None:
    """Train the tiny model on questions of the pattern until it writes some."""
    write_tiny_model(folder)
    model, tokenizer = load_model(folder, "fp32"), load_tokenizer(folder)
    homes = [example.response for example in open_questions(40, seed=7)]
    texts = []
    for number, example in enumerate(open_questions(120, seed=6)):
        choices = list(dict.fromkeys([example.response, *homes[number % 30 :]]))[:4]
        texts.append(f"Question: {example.prompt}\nAnswers: {' | '.join(choices)}\n\n")
    ids = tokenizer("".join(texts))["input_ids"]
    rows = torch.tensor(ids[: len(ids) // 128 * 128]).view(-1, 128)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        loss = model(rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("writing")
    write_params(root)
    write_author(root / "data/model/base")
    for name, seed in (("questions", 1), ("elsewhere", 2)):
        write_tiny_questions(root / f"data/fetch/{name}.jsonl", 80, seed)
    write.main(root, "more")
    return root


def questions(root: Path) -> list[dict[str, object]]:
    text = (root / "data/write/more/questions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_new_questions_are_kept_and_the_same_every_time(inputs):
    found = questions(inputs)
    counts = read_json(inputs / "data/write/more/summary.json")
    assert counts["draws"] == 40
    assert counts["kept"] == len(found) == 40 - sum(counts["left_out"].values()) > 0
    asked = [normalise(record["question"]) for record in found]
    assert len({*asked}) == len(asked)
    settings = load_settings(inputs / "params.yaml")
    shown = write.training_questions(inputs, settings, settings.write["more"])
    assert not {*asked} & {normalise(each.question) for each in shown}
    before = sha256_of(inputs / "data/write/more")
    write.main(inputs, "more")
    assert sha256_of(inputs / "data/write/more") == before


def test_they_are_prepared_for_teachers_to_label_and_none_is_tested(inputs):
    prepare.main(inputs)
    found = read_examples(inputs / "data/prepare/unlabelled.parquet")
    assert 0 < len(found) <= len(questions(inputs))
    assert {example.source for example in found} == {"more"}
    assert all(example.answer_index is None and len(example.choices) > 1 for example in found)
    tested = {e.asked for e in read_examples(inputs / "data/prepare/test.parquet")}
    assert not {example.asked for example in found} & tested
    # one that a test set asks is dropped, whoever wrote it
    written = inputs / "data/write/more/questions.jsonl"
    text = written.read_text(encoding="utf-8")
    line = json.dumps({"question": min(tested), "choices": ["here", "there"]})
    written.write_text(f"{text}{line}\n", encoding="utf-8")
    prepare.main(inputs)
    dropped = read_json(inputs / "data/prepare/summary.json")["dropped"]["in_another_split"]
    assert [each["kept"] for each in dropped if each["id"].startswith("more/")] == ["test"]
    written.write_text(text, encoding="utf-8")


def test_only_training_questions_are_shown(inputs):
    settings = load_settings(inputs / "params.yaml")
    prepare.main(inputs)
    shown = write.training_questions(inputs, settings, settings.write["more"])
    train = read_examples(inputs / "data/prepare/train.parquet")
    assert {*shown} == {*shown_questions(train)}


def test_what_a_test_set_asks_as_well_is_not_shown(inputs, tmp_path):
    write_params(tmp_path)
    yaml = YAML()
    params = yaml.load(tmp_path / "params.yaml")
    params["fetch"]["datasets"]["elsewhere"]["role"] = "test"
    yaml.dump(params, tmp_path / "params.yaml")
    (tmp_path / "data/fetch").mkdir(parents=True)
    lines = (inputs / "data/fetch/questions.jsonl").read_text(encoding="utf-8").splitlines()
    for name, some in (("questions", lines), ("elsewhere", lines[:40])):
        text = "".join(f"{line}\n" for line in some)
        (tmp_path / f"data/fetch/{name}.jsonl").write_text(text, encoding="utf-8")
    settings = load_settings(tmp_path / "params.yaml")
    shown = {
        each.question
        for each in write.training_questions(tmp_path, settings, settings.write["more"])
    }
    assert shown
    assert not shown & {json.loads(line)["question"] for line in lines[:40]}


def test_an_interrupted_run_goes_on_and_writes_the_same(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "PART", 16)
    write_params(tmp_path)
    (tmp_path / "data").mkdir()
    for folder in ("model", "fetch"):
        (tmp_path / "data" / folder).symlink_to(inputs / "data" / folder)
    decoded = []

    def interrupted(*given):
        if len(decoded) == 2:
            raise KeyboardInterrupt
        decoded.append(len(given[1]))
        return decode(*given)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(write, "decode", interrupted)
        write.main(tmp_path, "more")
    assert not (tmp_path / "data/write").exists()
    write.main(tmp_path, "more")
    assert sha256_of(tmp_path / "data/write/more") == sha256_of(inputs / "data/write/more")
    assert not [*(tmp_path / "data/.write").iterdir()]


def test_what_is_cut_off_or_too_long_is_no_question(inputs, tmp_path):
    write_params(tmp_path, max_new_tokens=24)
    (tmp_path / "data").mkdir()
    for folder in ("model", "fetch"):
        (tmp_path / "data" / folder).symlink_to(inputs / "data" / folder)
    with pytest.raises(DataValidationError, match="cut_off: "):
        write.main(tmp_path, "more")
    settings, tokenizer = (
        load_settings(inputs / "params.yaml"),
        load_tokenizer(inputs / "data/model/base"),
    )
    shown = [Asked("Where?", ("in a den", "in a hive"))]
    long = Asked("Where is it?", ("in a den", "where the bee lives " * 40))
    many = Asked("Where will it be?", ("in a den", "in a hive", "at sea"))
    good = Asked("Where was it?", ("at sea", "in a hive"))
    found = [(long, ""), (many, ""), (good, ""), (None, "cut_off")]
    kept, left_out = write.sifted(found, shown, settings, tokenizer)
    assert kept == [good]
    assert left_out == {"too_long": 2, "cut_off": 1}


def test_a_model_that_writes_no_question_stops_before_anything_is_learned(inputs, tmp_path):
    write_params(tmp_path, draws=3)
    write_tiny_model(tmp_path / "data/model/base")
    (tmp_path / "data/fetch").symlink_to(inputs / "data/fetch")
    with pytest.raises(DataValidationError, match=r"write\.more\.by: base wrote no new question"):
        write.main(tmp_path, "more")
    assert not (tmp_path / "data/write").exists() or not [*(tmp_path / "data/write").iterdir()]
    write_params(tmp_path, shots=16, like="questions")
    with pytest.raises(ConfigError, match=r"there is no write\.less; there are more"):
        write.main(tmp_path, "less")


def test_questions_are_put_in_other_words(inputs, tmp_path):
    write_params(tmp_path, task="paraphrase", draws=12)
    for folder in ("model", "fetch"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / folder).symlink_to(inputs / "data" / folder)
    write.main(tmp_path, "more")
    settings = load_settings(tmp_path / "params.yaml")
    shown = write.training_questions(tmp_path, settings, settings.write["more"])
    assert {tuple(record["choices"]) for record in questions(tmp_path)} <= {
        asked.choices for asked in shown
    }
    assert all("\n" not in record["question"] for record in questions(tmp_path))


def test_it_is_a_stage_between_its_model_and_the_splits(inputs):
    stages = [stage.name for stage in stages_of(load_settings(inputs / "params.yaml"))]
    assert stages[:4] == ["fetch", "model-base", "write-more", "prepare"]
    assert len({*stages}) == len(stages)
    by_name = {s.name: s for s in stages_of(load_settings(inputs / "params.yaml"))}
    assert "data/write/more" in by_name["prepare"].inputs
    assert "data/model/base" in by_name["write-more"].inputs
    # what decides which questions are shown, and which are kept
    decide = {"write.more", "fetch.datasets", "prepare.fractions", "prompt", "validate"}
    assert decide <= {*by_name["write-more"].params}
