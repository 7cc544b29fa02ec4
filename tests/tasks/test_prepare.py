import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkd.data.examples import Example, normalise, read_examples
from firstkd.data.settings import DatasetSource, Fractions, PrepareSettings, SplitLimits
from firstkd.errors import ArtifactError, DataValidationError
from firstkd.files import read_json, sha256_of
from tasks import prepare
from tests.tiny import write_tiny_params, write_tiny_questions

FRACTIONS = Fractions(train=0.5, calibration=0.25, test=0.25)
LIMITS = SplitLimits(train=None, calibration=None, test=None, out_of_domain=None)
SETTINGS = PrepareSettings(fractions=FRACTIONS, max_examples=LIMITS)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    raw = tmp_path / "data/fetch"
    write_tiny_questions(raw / "questions.jsonl", 80, seed=1)
    write_tiny_questions(raw / "elsewhere.jsonl", 20, seed=2)
    write_tiny_params(tmp_path)
    return tmp_path


def ids(root: Path, split: str) -> list[str]:
    return [example.id for example in read_examples(root / f"data/prepare/{split}.parquet")]


def example(identity: str, split: str, prompt: str, choices: str = "xy") -> Example:
    return Example(identity, prompt, choices[0], tuple(choices), 0, "a", split)


def test_every_question_is_in_exactly_one_split(project: Path) -> None:
    prepare.main(project)
    splits = ("train", "calibration", "test", "ood_elsewhere")
    together = [identity for split in splits for identity in ids(project, split)]
    assert len(together) == len(set(together)) == 100
    summary = read_json(project / "data/prepare/summary.json")
    assert summary["splits"]["ood_elsewhere"] == {"examples": 20, "sources": {"elsewhere": 20}}
    assert sum(split["examples"] for split in summary["splits"].values()) == 100


def test_the_same_data_give_the_same_bytes_in_any_order(project: Path) -> None:
    prepare.main(project)
    before = sha256_of(project / "data/prepare")
    raw = project / "data/fetch/questions.jsonl"
    raw.write_text("".join(reversed(raw.read_text().splitlines(keepends=True))))
    prepare.main(project)
    assert sha256_of(project / "data/prepare") == before


def test_adding_data_moves_no_example(project: Path) -> None:
    prepare.main(project)
    before = {split: set(ids(project, split)) for split in prepare.SPLITS}
    write_tiny_questions(project / "more.jsonl", 40, seed=3)
    with (project / "data/fetch/questions.jsonl").open("a") as raw:
        raw.write((project / "more.jsonl").read_text())
    prepare.main(project)
    for split, was in before.items():
        assert was < set(ids(project, split))


def test_a_truncated_file_leaves_nothing_and_the_next_run_works(project: Path) -> None:
    raw = project / "data/fetch/questions.jsonl"
    whole = raw.read_bytes()
    raw.write_bytes(whole[:-30])
    with pytest.raises(DataValidationError, match=r"questions\.jsonl, line 80: not valid JSON"):
        prepare.main(project)
    assert not (project / "data/prepare").exists()
    assert [path.name for path in (project / "data").iterdir()] == ["fetch"]
    raw.write_bytes(whole)
    prepare.main(project)


def test_a_missing_answer_leaves_nothing(project: Path) -> None:
    raw = project / "data/fetch/questions.jsonl"
    with raw.open("a") as lines:
        lines.write(json.dumps({"question": "Who?", "choices": ["he", "she"]}) + "\n")
    with pytest.raises(
        DataValidationError, match=r"questions\.jsonl, line 81: there is no .answer."
    ):
        prepare.main(project)
    assert not (project / "data/prepare").exists()


def test_missing_data_are_named(project: Path) -> None:
    (project / "data/fetch/questions.jsonl").unlink()
    with pytest.raises(ArtifactError, match=r"questions\.\* is missing; run the stage fetch"):
        prepare.main(project)


@pytest.mark.parametrize(
    ("role", "splits"),
    [
        ("split", {"train", "calibration", "test"}),
        ("train", {"train", "calibration"}),
        ("test", {"test"}),
        ("out_of_domain", {"ood_a"}),
    ],
)
def test_a_role_decides_the_splits(role: str, splits: set[str]) -> None:
    dataset = DatasetSource.model_validate(
        {"source": "path:sources/a.jsonl", "format": "questions", "role": role}
    )
    examples = [example(f"a/{number}", "", "?") for number in range(60)]
    assert {prepare.assign(each, dataset, FRACTIONS).split for each in examples} == splits


def test_a_question_in_two_splits_stays_where_it_is_tested() -> None:
    examples = [
        example("train", "train", "Where?"),
        example("calibration", "calibration", "where", "pq"),
        example("ood", "ood_a", "WHERE?", "rs"),
        example("test", "test", "Where", "tu"),
    ]
    splits, dropped = prepare.divide(examples, SETTINGS)
    assert [each.id for each in splits["test"]] == ["test"]
    assert {split: len(kept) for split, kept in splits.items() if kept} == {"test": 1}
    assert dropped["in_another_split"] == [
        {"id": "ood", "kept": "test"},
        {"id": "calibration", "kept": "test"},
        {"id": "train", "kept": "test"},
    ]


def test_of_duplicates_the_first_is_kept_and_other_choices_make_another_question() -> None:
    examples = [
        example("first", "train", "Where?"),
        example("second", "train", "where", "XY"),
        example("third", "train", "Where?", "xz"),
    ]
    splits, dropped = prepare.divide(examples, SETTINGS)
    assert {each.id for each in splits["train"]} == {"first", "third"}
    assert dropped["duplicate"] == [{"id": "second", "kept": "first"}]


def test_empty_responses_are_dropped_and_named() -> None:
    empty = Example("a/1", "Say nothing.", "", None, None, "a", "train")
    splits, dropped = prepare.divide([empty], SETTINGS)
    assert splits["train"] == [] and dropped["empty_response"] == ["a/1"]


def test_a_larger_training_set_contains_the_smaller_one() -> None:
    examples = [example(f"a/{number}", "train", f"Number {number}?") for number in range(40)]
    kept = {}
    for count in (10, 20):
        limits = LIMITS.model_copy(update={"train": count})
        capped = SETTINGS.model_copy(update={"max_examples": limits})
        splits, dropped = prepare.divide(examples, capped)
        kept[count] = splits["train"]
        assert dropped["over_max_examples"]["train"] == 40 - count
    assert kept[10] == kept[20][:10]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["train", "calibration", "test", "ood_a"]),
            st.sampled_from(["Where?", "where", "Who?", "When?"]),
            st.sampled_from(["xy", "xz"]),
        )
    )
)
def test_whatever_comes_no_question_is_in_two_splits(rows: list[tuple[str, str, str]]) -> None:
    examples = [example(f"a/{i}", *row) for i, row in enumerate(rows)]
    splits, dropped = prepare.divide(examples, SETTINGS)
    questions = {split: {normalise(each.prompt) for each in splits[split]} for split in splits}
    assert sum(map(len, questions.values())) == len(set().union(*questions.values()))
    kept = sum(map(len, splits.values()))
    assert kept + len(dropped["duplicate"]) + len(dropped["in_another_split"]) == len(examples)
