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
    set_validate(tmp_path, min_answer_questions=20)
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
    assert "answer_share_0" not in summary["test"]["expectations"]  # of eight questions
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
    ("ood_b", 1, {"group": "passage/1"}, "group_in_one_split: 1 rows: a/ood_b1"),
    ("train", 7, {"group": "passage/1"}, "group_in_one_split: 1 rows: a/train7"),
]


def test_what_is_wrong_is_named_with_its_split_and_rows(project: Path) -> None:
    splits = good()
    for split, row, changes, _ in SPOILED:
        splits[split][row] = replace(splits[split][row], **changes)
    splits["ood_c"] = []
    with pytest.raises(DataValidationError) as caught:
        check(project, splits)
    message = str(caught.value)
    few = "data/prepare/ood_c.parquet: enough_examples: observed 0 (fetch.datasets.c)"
    assert few in message
    for split, _, _, failure in SPOILED:
        line = next(line for line in message.splitlines() if failure in line)
        assert line.startswith(f"  data/prepare/{split}.parquet: {failure} (")
        governing = "validate.max_" if "tokens" in failure else "fetch.datasets.a)"
        assert governing in line
    assert not (project / "data/validate").exists()
    assert (project / "logs/validate/data_docs/index.html").is_file()


def set_validate(project: Path, **values: object) -> None:
    yaml = YAML()
    params = yaml.load(project / "params.yaml")
    params["validate"].update(values)
    yaml.dump(params, project / "params.yaml")


def test_answers_that_are_always_the_same_fail(project: Path) -> None:
    set_validate(project, min_answer_share=0.1, min_answer_questions=8)
    splits = good()
    splits["test"] = [replace(each, answer_index=2, response="y") for each in splits["test"]]
    with pytest.raises(DataValidationError) as caught:
        check(project, splits)
    assert (
        "test.parquet: answer_share_0: observed 0.0 (validate.min_answer_share = 0.1, judged where "
        "validate.min_answer_questions = 8 questions have the choice)" in str(caught.value)
    )


@pytest.mark.parametrize("choices", ["vwxyz", "uvwxyz", "vwx"])
def test_a_position_that_few_questions_have_is_left_unjudged(project: Path, choices: str) -> None:
    """As ARC's test set, where 3 of 1,172 questions have five choices."""
    set_validate(project, min_answer_share=0.1, min_answer_questions=8)
    splits = good()
    splits["test"] += [
        replace(each, id=f"b/{i}", prompt=f"Odd {i}?", choices=tuple(choices), answer_index=1)
        for i, each in enumerate(questions("test", 3))
    ]
    splits["test"][-3:] = [replace(each, response=choices[1]) for each in splits["test"][-3:]]
    check(project, splits)
    expectations = read_json(project / "data/validate/summary.json")["test"]["expectations"]
    shares = {name for name in expectations if name.startswith("answer_share_")}
    assert shares == {f"answer_share_{place}" for place in range(4)}


def test_too_few_questions_name_their_setting(project: Path) -> None:
    splits = good()
    splits["calibration"] = splits["calibration"][:3]
    with pytest.raises(DataValidationError, match=r"\(validate\.min_examples\.calibration = 5\)"):
        check(project, splits)


def unlabelled(count: int) -> list[Example]:
    return [
        replace(each, response="", answer_index=None) for each in questions("unlabelled", count)
    ]


def test_unlabelled_questions_pass_and_may_share_passages_with_train(project: Path) -> None:
    splits = {**good(), "unlabelled": unlabelled(6)}
    for split in ("train", "unlabelled"):
        splits[split][0] = replace(splits[split][0], group="passage/1")
    check(project, splits)
    assert all(succeeded(project, "unlabelled"))
    summary = read_json(project / "data/validate/summary.json")["unlabelled"]
    assert "no_answer_index" in summary["expectations"]
    assert not any(name.startswith("answer_share") for name in summary["expectations"])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"answer_index": 0}, "no_answer_index: 1 rows: a/unlabelled2"),
        ({"response": "w"}, "response_empty: 1 rows: a/unlabelled2"),
        ({"prompt": "The TEST question 1"}, "question_in_one_split: 1 rows: a/unlabelled2"),
        ({"prompt": "The train question 1?"}, "question_in_one_split: 1 rows: a/unlabelled2"),
        ({"group": "passage/1"}, "group_in_one_split: 1 rows: a/unlabelled2"),
        ({"choices": ("w",)}, "choices_two_or_more: 1 rows: a/unlabelled2"),
    ],
)
def test_unlabelled_questions_with_answers_or_of_other_splits_fail(
    project: Path, changes: dict[str, Any], problem: str
) -> None:
    splits = {**good(), "unlabelled": unlabelled(6)}
    splits["calibration"][0] = replace(splits["calibration"][0], group="passage/1")
    splits["unlabelled"][2] = replace(splits["unlabelled"][2], **changes)
    with pytest.raises(DataValidationError, match=problem):
        check(project, splits)


def test_of_many_rows_twenty_are_named(project: Path) -> None:
    splits = good()
    splits["train"] = [replace(each, response="v") for each in questions("train", 30)]
    with pytest.raises(DataValidationError, match=r"response_is_chosen_choice: 30 rows: .* …") as c:
        check(project, splits)
    assert str(c.value).count("a/train") == 20


def test_repeated_choices_only_warn(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    splits = good()
    splits["ood_b"][0] = replace(splits["ood_b"][0], choices=("w", "x", "x"))
    check(project, splits)
    warned = "ood_b.parquet: choices_distinct: 1 rows: a/ood_b0 (fetch.datasets.a)"
    assert warned in caplog.text


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
