import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from firstkd.data import division, examples, pool
from firstkd.data.division import divide
from firstkd.data.examples import Example, normalise, read_examples
from firstkd.data.pool import Pool
from firstkd.data.settings import DatasetSource, Fractions, SplitLimits
from firstkd.errors import ArtifactError, ConfigError, DataValidationError
from firstkd.files import read_json, sha256_of
from tasks import prepare
from tasks.prepare import SPLITS
from tests.tiny import write_tiny_params, write_tiny_questions

FRACTIONS = Fractions(train=0.5, calibration=0.25, test=0.25)
LIMITS = SplitLimits(train=None, calibration=None, test=None, out_of_domain=None)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    raw = tmp_path / "data/fetch"
    write_tiny_questions(raw / "questions.jsonl", 80, seed=1)
    write_tiny_questions(raw / "elsewhere.jsonl", 20, seed=2)
    write_tiny_params(tmp_path)
    return tmp_path


def ids(root: Path, split: str) -> list[str]:
    return [example.id for example in read_examples(root / f"data/prepare/{split}.parquet")]


def divided(
    examples: list[Example], limits: SplitLimits = LIMITS
) -> tuple[dict[str, list[Example]], dict[str, Any]]:
    """Return the examples that each split keeps, and what was dropped."""
    splits = dict.fromkeys([*SPLITS, *(each.split for each in examples)])
    with tempfile.TemporaryDirectory() as name, Pool(Path(name) / "pool.duckdb") as pool:
        pool.add(examples)
        dropped = divide(pool)
        _, over = prepare.write_splits(pool, Path(name), list(splits), limits)
        kept = {split: read_examples(Path(name) / f"{split}.parquet") for split in splits}
    return kept, {**dropped, "over_max_examples": over}


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


def test_in_many_parts_the_same_examples_are_in_the_same_places(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare.main(project)
    whole = {split: ids(project, split) for split in (*SPLITS, "ood_elsewhere")}
    summary = sha256_of(project / "data/prepare/summary.json")
    for module in (examples, division, pool):
        monkeypatch.setattr(module, "CHUNK", 7)
    prepare.main(project)
    assert {split: ids(project, split) for split in whole} == whole
    assert sha256_of(project / "data/prepare/summary.json") == summary


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
    with pytest.raises(ArtifactError, match=r"questions\.\* is missing; run the fetch stage"):
        prepare.main(project)


@pytest.mark.parametrize(
    ("role", "splits"),
    [
        ("split", {"train", "calibration", "test"}),
        ("train", {"train", "calibration"}),
        ("test", {"test"}),
        ("out_of_domain", {"ood_a"}),
        ("unlabelled", {"unlabelled"}),
        ("calibration", {"calibration"}),
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
    splits, dropped = divided(examples)
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
    splits, dropped = divided(examples)
    assert {each.id for each in splits["train"]} == {"first", "third"}
    assert dropped["duplicate"] == [{"id": "second", "kept": "first"}]


def test_empty_responses_are_dropped_and_named() -> None:
    empty = Example("a/1", "Say nothing.", "", None, None, "a", "train")
    splits, dropped = divided([empty])
    assert splits["train"] == [] and dropped["empty_response"] == ["a/1"]


def test_a_larger_training_set_contains_the_smaller_one() -> None:
    examples = [example(f"a/{number}", "train", f"Number {number}?") for number in range(40)]
    kept = {}
    for count in (10, 20):
        limits = LIMITS.model_copy(update={"train": count})
        splits, dropped = divided(examples, limits)
        kept[count] = splits["train"]
        assert dropped["over_max_examples"]["train"] == 40 - count
    assert kept[10] == kept[20][:10]


@settings(max_examples=40, deadline=None)  # each opens a database
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["train", "calibration", "test", "ood_a", "unlabelled"]),
            st.sampled_from(["Where?", "where", "Who?", "When?"]),
            st.sampled_from(["xy", "xz"]),
            st.sampled_from([None, "passage/1", "passage/2"]),
        )
    )
)
def test_whatever_comes_no_question_is_in_two_splits(
    rows: list[tuple[str, str, str, str | None]],
) -> None:
    examples = [
        replace(example(f"a/{i}", split, prompt, choices), group=group)
        for i, (split, prompt, choices, group) in enumerate(rows)
    ]
    splits, dropped = divided(examples)
    questions = {split: {normalise(each.prompt) for each in splits[split]} for split in splits}
    assert sum(map(len, questions.values())) == len(set().union(*questions.values()))
    groups = {split: {each.group for each in splits[split]} - {None} for split in splits}
    groups["train"] |= groups.pop("unlabelled", set())
    assert sum(map(len, groups.values())) == len(set().union(*groups.values()))
    kept = sum(map(len, splits.values()))
    lost = ("duplicate", "in_another_split", "group_in_another_split")
    assert kept + sum(len(dropped[reason]) for reason in lost) == len(examples)


@pytest.mark.parametrize("answer", [["a", "b"], {"a": 1}, "c"])
def test_an_error_starts_on_a_line_of_its_own(
    project: Path, capfd: pytest.CaptureFixture[str], answer: object
) -> None:
    """Not behind the progress bar, which must be closed while the error is still being handled."""
    raw = project / "data/fetch/elsewhere.jsonl"
    raw.write_text(json.dumps({"question": "Who?", "choices": ["a", "b"], "answer": answer}))
    with pytest.raises(DataValidationError, match=r"elsewhere\.jsonl, line 1: ") as caught:
        prepare.main(project)
    written = capfd.readouterr().err
    assert not written or written.endswith("\n"), caught


def write_questions(file: Path, *questions: str, **more: object) -> None:
    records = [{"question": asked, "choices": ["a", "b"], **more} for asked in questions]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


def add_dataset(project: Path, name: str, role: str, **settings: object) -> Path:
    yaml = YAML()
    params = yaml.load(project / "params.yaml")
    source = {"source": f"path:sources/{name}.jsonl", "format": "questions", "role": role}
    params["fetch"]["datasets"][name] = {**source, **settings}
    yaml.dump(params, project / "params.yaml")
    return project / f"data/fetch/{name}.jsonl"


def test_a_passage_never_straddles_splits(project: Path) -> None:
    passages = [f"Passage {number}. " + "It goes on and on. " * 20 for number in range(30)]
    asked = [f"{passage}\nQuestion {i}?" for passage in passages for i in range(4)]
    raw = project / "data/fetch/questions.jsonl"
    write_questions(raw, *asked, answer="a")
    prepare.main(project)
    found = {split: read_examples(project / f"data/prepare/{split}.parquet") for split in SPLITS}
    assert sum(map(len, found.values())) == 120
    groups = [{each.group for each in examples} for examples in found.values()]
    assert all(groups) and sum(map(len, groups)) == len(set().union(*groups)) == 30


def test_a_group_of_ones_own_never_straddles_splits(project: Path) -> None:
    raw = add_dataset(project, "stories", "split", columns={"group": "story"})
    records = [
        {"question": f"Question {i} of {story}?", "choices": ["a", "b"], "answer": "a"}
        | {"story": story}
        for story in range(20)
        for i in range(4)
    ]
    raw.write_text("".join(json.dumps(record) + "\n" for record in records))
    prepare.main(project)
    groups = [
        {each.group for each in read_examples(project / f"data/prepare/{split}.parquet")} - {None}
        for split in SPLITS
    ]
    assert all(groups) and sum(map(len, groups)) == len(set().union(*groups)) == 20


def test_a_passage_of_two_data_sets_stays_where_it_is_tested() -> None:
    examples = [
        replace(example("train", "train", "Who?"), group="passage/1"),
        replace(example("unlabelled", "unlabelled", "When?"), group="passage/1"),
        replace(example("test", "test", "Where?"), group="passage/1"),
        replace(example("other", "train", "What?"), group="passage/2"),
        replace(example("with it", "unlabelled", "Why?"), group="passage/2"),
    ]
    splits, dropped = divided(examples)
    kept = {split: [each.id for each in found] for split, found in splits.items() if found}
    assert kept == {"test": ["test"], "train": ["other"], "unlabelled": ["with it"]}
    lost = dropped["group_in_another_split"]
    assert lost == [{"id": "train", "kept": "test"}, {"id": "unlabelled", "kept": "test"}]


def test_an_instruction_above_every_question_is_no_passage(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    instruction = "Read the question with care and choose what is right. " * 5
    raw = project / "data/fetch/questions.jsonl"
    write_questions(raw, *[f"{instruction}\nNumber {i}?" for i in range(20)], answer="a")
    prepare.main(project)
    assert "questions.jsonl: 20 of 20 examples are one group, passage/" in caplog.text
    assert "set fetch.datasets.questions.columns.group" in caplog.text


def test_unlabelled_questions_have_a_file_of_their_own(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In no test set, and without the questions of any other split, however they are written."""
    caplog.set_level("INFO")
    prepare.main(project)
    known = {
        split: read_examples(project / f"data/prepare/{split}.parquet")
        for split in (*SPLITS, "ood_elsewhere")
    }
    raw = add_dataset(project, "more", "unlabelled")
    asked = [f"  {examples[0].prompt.upper()} " for examples in known.values()]
    write_questions(raw, *asked, "New?", "Newer?", answer="a")
    prepare.main(project)
    found = read_examples(project / "data/prepare/unlabelled.parquet")
    assert {each.prompt for each in found} == {"New?", "Newer?"}
    assert all(each.answer_index is None and each.response == "" for each in found)
    again = {
        split: read_examples(project / f"data/prepare/{split}.parquet")
        for split in (*SPLITS, "ood_elsewhere")
    }
    assert again == known
    dropped = read_json(project / "data/prepare/summary.json")["dropped"]["in_another_split"]
    assert {each["kept"] for each in dropped} == {*SPLITS, "ood_elsewhere"}
    assert "dropped as in_another_split: 4 examples" in caplog.text


def test_without_unlabelled_data_there_is_no_such_file(project: Path) -> None:
    prepare.main(project)
    assert not (project / "data/prepare/unlabelled.parquet").exists()


def test_unlabelled_questions_have_a_limit_of_their_own() -> None:
    limits = LIMITS.model_copy(update={"unlabelled": 3, "out_of_domain": 1})
    examples = [example(f"a/{i}", "unlabelled", f"Number {i}?") for i in range(9)]
    splits, dropped = divided(examples, limits)
    assert len(splits["unlabelled"]) == 3 and dropped["over_max_examples"]["unlabelled"] == 6


def test_variants_of_what_is_learned_are_questions_for_the_teacher(project: Path) -> None:
    prepare.main(project)
    train, before = ids(project, "train"), sha256_of(project / "data/prepare/train.parquet")
    yaml = YAML()
    params = yaml.load(project / "params.yaml")
    params["prepare"]["augment"] = {"other_choices": 2}
    yaml.dump(params, project / "params.yaml")
    prepare.main(project)
    found = read_examples(project / "data/prepare/unlabelled.parquet")
    counts = read_json(project / "data/prepare/summary.json")["splits"]["unlabelled"]
    assert counts["examples"] == counts["variants"] == len(found) > len(train)
    assert {example.id.partition("#")[0] for example in found} <= {*train}
    assert all(example.answer_index is None for example in found)
    assert sha256_of(project / "data/prepare/train.parquet") == before
    params["fetch"]["datasets"]["elsewhere"]["role"] = "unlabelled"
    yaml.dump(params, project / "params.yaml")
    prepare.main(project)
    both = ids(project, "unlabelled")
    counts = read_json(project / "data/prepare/summary.json")["splits"]["unlabelled"]
    assert counts["sources"].keys() == {"elsewhere", "questions"}
    assert counts["examples"] == len(both) == 20 + counts["variants"]
    assert {*both} > {example.id for example in found}
    again = sha256_of(project / "data/prepare")
    prepare.main(project)
    assert sha256_of(project / "data/prepare") == again


def test_questions_that_have_no_variants_are_named(project: Path) -> None:
    records = [
        {"question": f"Is it {i}?", "choices": ["yes", "no"], "answer": "yes"} for i in range(40)
    ]
    for name in ("questions", "elsewhere"):
        text = "".join(json.dumps(record) + "\n" for record in records)
        (project / f"data/fetch/{name}.jsonl").write_text(text)
    yaml = YAML()
    params = yaml.load(project / "params.yaml")
    params["prepare"]["augment"] = {"other_choices": 1}
    yaml.dump(params, project / "params.yaml")
    with pytest.raises(DataValidationError, match=r"prepare\.augment: no question has variants"):
        prepare.main(project)
    assert not (project / "data/prepare").exists()


def test_variants_and_folds_are_refused_together(project: Path) -> None:
    yaml = YAML()
    params = yaml.load(project / "params.yaml")
    params["prepare"]["augment"] = {"orders": 1}
    params["models"]["teacher"]["leave_out"] = {"fold": 0, "of": 2}
    yaml.dump(params, project / "params.yaml")
    with pytest.raises(ConfigError, match=r"prepare\.augment: models\.teacher\.leave_out puts"):
        prepare.main(project)


def test_paraphrases_and_folds_are_refused_together(project: Path) -> None:
    yaml = YAML()
    params = yaml.load(project / "params.yaml")
    like = next(iter(params["fetch"]["datasets"]))
    params["write"] = {"more": {"by": "base", "like": like, "task": "paraphrase", "draws": 5}}
    params["models"]["teacher"]["leave_out"] = {"fold": 0, "of": 2}
    yaml.dump(params, project / "params.yaml")
    with pytest.raises(ConfigError, match=r"write\.more\.task: models\.teacher\.leave_out puts"):
        prepare.main(project)
