import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from firstkd.data.examples import Example, write_examples
from firstkd.errors import ArtifactError, ConfigError, DataValidationError
from firstkd.files import read_json, sha256_of
from tasks import validate
from tests.tiny import write_tiny_params

Splits = dict[str, list[Example]]


def questions(split: str, count: int) -> list[Example]:
    """Four choices each, the answer at every place in turn."""
    return [
        Example(
            f"a/{split}{number}",
            f"The {split} question {number}?",
            choice,
            tuple("wxyz"),
            place,
            "a",
            split,
        )
        for number in range(count)
        for place, choice in [(number % 4, "wxyz"[number % 4])]
    ]


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path) -> Path:
    (tmp_path / "data/model").mkdir(parents=True)
    (tmp_path / "data/model/base").symlink_to(tiny_model)
    write_tiny_params(tmp_path)
    return tmp_path


def good() -> Splits:
    sizes = {"train": 20, "calibration": 8, "test": 8, "ood_b": 8}
    return {split: questions(split, count) for split, count in sizes.items()}


def check(root: Path, splits: Splits) -> None:
    for split, examples in splits.items():
        write_examples(root / f"data/prepare/{split}.parquet", examples)
    validate.main(root)


def test_good_examples_pass_with_the_same_bytes_each_time(project: Path) -> None:
    check(project, good())
    before = sha256_of(project / "data/validate")
    summary = read_json(project / "data/validate/summary.json")
    assert {split: part["examples"] for split, part in summary.items()} == {
        "train": 20,
        "calibration": 8,
        "test": 8,
        "ood_b": 8,
    }
    assert summary["train"]["expectations"]["answer_share_0"]["observed"] == 0.25
    assert (project / "logs/validate/data_docs/index.html").is_file()
    assert list((project / "logs/validate/data_docs/validations/train").rglob("*.html"))
    check(project, good())
    assert sha256_of(project / "data/validate") == before


def test_open_text_passes(project: Path) -> None:
    splits = good()
    for number in range(5):
        example = Example(f"b/{number}", f"Say {number}.", f"{number}!", None, None, "b", "train")
        splits["train"].append(example)
    check(project, splits)
    assert all(succeeded(project, "train"))
    splits = {
        split: [replace(example, choices=None, answer_index=None) for example in examples]
        for split, examples in splits.items()
    }
    check(project, splits)
    assert all(succeeded(project, "train"))


def succeeded(root: Path, split: str) -> list[bool]:
    expectations = read_json(root / "data/validate/summary.json")[split]["expectations"]
    assert expectations
    return [outcome["success"] for outcome in expectations.values()]


SPOILED: list[tuple[str, int, dict[str, Any], str]] = [
    ("train", 0, {"id": "a/train1"}, "id_unique: 2 rows: a/train1, a/train1"),
    ("train", 2, {"answer_index": 4}, "answer_index_within_choices: 1 rows: a/train2"),
    ("train", 3, {"answer_index": -1}, "answer_index_not_negative: 1 rows: a/train3"),
    ("train", 4, {"choices": ("w",)}, "choices_two_or_more: 1 rows: a/train4"),
    ("train", 5, {"choices": ("w", "x", " ")}, "choices_not_blank: 1 rows: a/train5"),
    ("train", 6, {"prompt": "word " * 300}, "prompt_tokens_within_limit: 1 rows: a/train6"),
    ("calibration", 0, {"response": "v"}, "response_is_chosen_choice: 1 rows: a/calibration0"),
    ("calibration", 1, {"id": "a/test0"}, "id_in_one_split: 1 rows: a/test0"),
    ("test", 0, {"prompt": " \n"}, "prompt_not_blank: 1 rows: a/test0"),
    ("test", 1, {"response": ""}, "response_not_blank: 1 rows: a/test1"),
    ("test", 2, {"answer_index": None}, "response_is_chosen_choice: 2 rows: a/test1, a/test2"),
    ("test", 4, {"choices": ("w", "word " * 90)}, "response_tokens_within_limit: 1 rows: a/test4"),
    ("test", 3, {"split": "train"}, "split_as_file: 1 rows: a/test3"),
    ("ood_b", 0, {"prompt": "the test question 7"}, "question_in_one_split: 1 rows: a/ood_b0"),
]


def test_what_is_wrong_is_named_with_its_split_and_rows(project: Path) -> None:
    splits = good()
    for split, row, changes, _ in SPOILED:
        splits[split][row] = replace(splits[split][row], **changes)
    splits["ood_c"] = []
    with pytest.raises(DataValidationError) as caught:
        check(project, splits)
    message = str(caught.value)
    assert "data/prepare/ood_c.parquet: enough_examples: observed 0" in message
    for split, _, _, failure in SPOILED:
        assert f"data/prepare/{split}.parquet: {failure}\n" in f"{message}\n"
    assert not (project / "data/validate").exists()
    assert (project / "logs/validate/data_docs/index.html").is_file()


def test_answers_that_are_always_the_same_fail(project: Path) -> None:
    yaml = YAML()
    params = yaml.load(project / "params.yaml")
    params["validate"]["min_answer_share"] = 0.1
    yaml.dump(params, project / "params.yaml")
    splits = good()
    splits["test"] = [replace(each, answer_index=2, response="y") for each in splits["test"]]
    with pytest.raises(DataValidationError, match=r"test\.parquet: answer_share_0: observed 0"):
        check(project, splits)


def test_of_many_rows_twenty_are_named(project: Path) -> None:
    splits = good()
    splits["train"] = [replace(each, response="v") for each in questions("train", 30)]
    with pytest.raises(DataValidationError, match=r"response_is_chosen_choice: 30 rows: .* …") as c:
        check(project, splits)
    assert str(c.value).count("a/train") == 20


def test_shared_passages_and_repeated_choices_only_warn(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits = good()
    for split, place in (("train", 0), ("train", 1), ("test", 0), ("test", 1)):
        asked = splits[split][place]
        splits[split][place] = replace(asked, prompt=f"A passage of both.\n{asked.prompt}")
    line = "where does the happy fox live " * 7
    for split in ("train", "calibration"):
        opened = Example(f"b/{split}", f"{split}:\n{line}", "Yes.", None, None, "b", split)
        splits[split].append(opened)
    splits["ood_b"][0] = replace(splits["ood_b"][0], choices=("w", "x", "x"))
    check(project, splits)
    assert "test.parquet: passage_in_one_split: 2 rows: a/test0, a/test1" in caplog.text
    assert "calibration.parquet: passage_in_one_split: 1 rows: b/calibration" in caplog.text
    assert "ood_b.parquet: choices_distinct: 1 rows: a/ood_b0" in caplog.text
    summary = read_json(project / "data/validate/summary.json")
    assert summary["test"]["shared_passages"] == summary["calibration"]["shared_passages"] == 1


def test_a_file_that_is_no_example_file_is_refused(project: Path) -> None:
    for split, examples in good().items():
        write_examples(project / f"data/prepare/{split}.parquet", examples)
    (project / "data/prepare/test.parquet").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match=r"test\.parquet: not a parquet file"):
        validate.main(project)


def test_token_ids_of_two_tokenizers_are_refused_before_any_training(project: Path) -> None:
    params = YAML(typ="safe").load(project / "params.yaml")
    params["models"]["judge"] = {"init": {"kind": "source", "source": "path:sources/judge"}}
    params["signals"]["tokens"]["of"] = "judge"
    YAML().dump(params, project / "params.yaml")
    judge = project / "data/model/judge"
    shutil.copytree(project / "data/model/base", judge)
    check(project, good())  # of the same vocabulary
    tokenizer = (judge / "tokenizer.json").read_text(encoding="utf-8")
    (judge / "tokenizer.json").write_text(tokenizer.replace('"<pad>"', '"<nil>"'))
    with pytest.raises(
        ConfigError,
        match=r"models\.first\.learn\.tokens\.from: signals\.tokens holds token ids of ",
    ):
        check(project, good())
