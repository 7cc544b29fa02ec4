import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from firstkd.data.examples import Example, Turn, write_examples
from firstkd.errors import ArtifactError, ConfigError, DataValidationError
from firstkd.files import read_json, sha256_of
from firstkd.models import folders
from firstkd.models.folders import load_model
from firstkd.settings import load_settings
from tasks import validate
from tasks.preflight import check_vocabulary
from tests.tiny import permute_tokenizer, write_tiny_params

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


def test_a_split_in_many_parts_is_found_to_be_the_same(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(project, good())
    whole = sha256_of(project / "data/validate")
    monkeypatch.setattr("firstkd.data.examples.CHUNK", 8)
    check(project, good())
    assert sha256_of(project / "data/validate") == whole
    splits = good()
    for row in (0, 19):  # of the first part and of the last
        splits["train"][row] = replace(splits["train"][row], response="v")
    splits["train"][18] = replace(splits["train"][18], id="a/train1")
    with pytest.raises(DataValidationError) as caught:
        check(project, splits)
    assert "response_is_chosen_choice: 2 rows: a/train0, a/train19 (" in str(caught.value)
    assert "id_unique: 2 rows: a/train1, a/train1 (" in str(caught.value)


def test_open_text_passes(project: Path) -> None:
    splits = good()
    for number in range(5):
        example = Example(f"b/{number}", f"Say {number}.", f"{number}!", None, None, "b", "train")
        splits["train"].append(example)
    check(project, splits)
    assert all(succeeded(project, "train"))


def give_template(project: Path) -> Path:
    base = project / "data/model/base"
    shutil.copytree(base.resolve(), project / "copy")
    base.unlink()
    (project / "copy").rename(base)
    file = base / "chat_template.jinja"
    file.write_text("{% for m in messages %}{{ m['content'] }}</s>{% endfor %}")
    return file


def as_open_text(examples: list[Example]) -> list[Example]:
    return [replace(example, choices=None, answer_index=None) for example in examples]


@pytest.mark.parametrize(
    ("splits", "problem"),
    [
        (
            ["train"],
            "models.teacher.learn.right: no training question has what gold_choice compares",
        ),
        (
            ["calibration"],
            "one has only questions with choices, the other only open text",
        ),
        (["test"], "one has only questions with choices, the other only open text"),
        (
            ["train", "calibration", "test"],
            "models.teacher.learn.right: no training question has what gold_choice compares",
        ),
    ],
)
def test_open_text_where_questions_with_choices_are_needed_is_refused_before_any_training(
    project: Path, splits: list[str], problem: str
) -> None:
    data = {name: as_open_text(each) if name in splits else each for name, each in good().items()}
    with pytest.raises((ConfigError, DataValidationError), match=re.escape(problem)) as caught:
        check(project, data)
    assert "fetch.datasets" in str(caught.value)
    assert not (project / "data/validate").exists()


def test_an_export_without_choices_to_choose_from_is_refused_before_any_training(
    project: Path,
) -> None:
    def on_open_text(params: Any) -> None:
        params["models"]["teacher"]["learn"] = {"gold": {}}
        params["exports"] = {
            "edge": {"kind": "gguf", "of": "teacher", "weights": "f16", "license": "Apache-2.0"}
        }

    change(project, on_open_text)
    with pytest.raises(ConfigError, match="exports: an export answers by choosing"):
        check(project, {name: as_open_text(examples) for name, examples in good().items()})


def test_an_ensemble_cannot_be_measured_beside_models_that_also_answer_open_text(
    project: Path,
) -> None:
    def with_ensemble(params: Any) -> None:
        params["evaluate"]["ensembles"] = {"deep": ["sft", "first"]}
        params["evaluate"]["models"].append("deep")

    change(project, with_ensemble)
    splits = good()
    for name in ("calibration", "test"):
        splits[name][:2] = as_open_text(splits[name][:2])
    with pytest.raises(ConfigError, match=r"evaluate\.models: 'deep' is measured by its choices"):
        check(project, splits)
    check(project, good())


def test_one_question_with_choices_is_too_little_to_recalibrate_a_signal_on(project: Path) -> None:
    splits = good()
    splits["calibration"][1:] = as_open_text(splits["calibration"][1:])
    with pytest.raises(
        ConfigError,
        match=r"signals\.choices: .*: only a/calibration0 has choices, but 2 questions",
    ):
        check(project, splits)


def test_one_passage_is_too_little_to_recalibrate_a_signal_on(project: Path) -> None:
    splits = good()
    splits["calibration"] = [replace(e, group="passage/1") for e in splits["calibration"]]
    with pytest.raises(
        ConfigError, match=r"signals\.choices: .*: only passage/1 has choices, but 2 "
    ):
        check(project, splits)


def test_more_layers_than_the_model_has_are_refused_before_any_training(project: Path) -> None:
    def layers(params: Any) -> None:
        params["models"]["start"]["init"] = {"kind": "prune", "of": "teacher", "layers": 3}

    change(project, layers)
    with pytest.raises(
        ConfigError, match=r"models\.start\.init\.layers: 3, but teacher has 2; keep"
    ):
        check(project, good())


def test_a_family_that_cannot_be_pruned_is_refused_before_any_training(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_another_list(*loaded: Any) -> Any:
        model = load_model(*loaded)
        model.base_model.more = torch.nn.ModuleList(torch.nn.Identity() for _ in range(2))
        return model

    def prune(params: Any) -> None:
        params["models"]["start"]["init"] = {"kind": "prune", "of": "teacher", "layers": 1}

    change(project, prune)
    monkeypatch.setattr(folders, "load_model", with_another_list)
    with pytest.raises(ArtifactError, match=r"models\.start: llama: 2 lists of 2 modules"):
        check(project, good())


@pytest.mark.parametrize(
    ("section", "key", "value", "problem"),
    [
        ("train.distill", "micro_batches_per_step", 1000, r"train\.distill: .* less than one step"),
        ("machine", "processes", 3, r"train\.\w+: micro_batches_per_step: .* among 3 processes"),
    ],
)
def test_what_a_later_training_could_not_do_is_refused_before_the_first(
    project: Path, section: str, key: str, value: int, problem: str
) -> None:
    def ask_too_much(params: Any) -> None:
        for name in section.split("."):
            params = params[name]
        params[key] = value

    change(project, ask_too_much)
    with pytest.raises(ConfigError, match=f"^params.yaml: {problem}"):
        check(project, good())


def test_more_tokens_than_the_vocabulary_has_are_refused(project: Path) -> None:
    settings = load_settings(project / "params.yaml")
    check_vocabulary(settings, "base", 6)
    with pytest.raises(ConfigError, match=r"^params.yaml: signals\.tokens: select\.k: 5 of a voc"):
        check_vocabulary(settings, "base", 5)


def test_an_average_of_what_did_not_start_as_one_is_refused_before_any_training(
    project: Path,
) -> None:
    def average(params: Any) -> None:
        params["models"]["mean"] = {"init": {"kind": "average", "of": ["first", "teacher"]}}

    change(project, average)
    with pytest.raises(
        ConfigError,
        match=r"models\.mean\.init\.of: 'first' starts from 'start', 'teacher' from 'base'",
    ):
        validate.main(project)


def test_layers_are_counted_along_the_models_that_are_made_from_each_other(project: Path) -> None:
    def add(params: Any) -> None:
        params["models"]["small"] = {"init": {"kind": "prune", "of": "base", "layers": 1}}
        params["models"]["smaller"] = {"init": {"kind": "prune", "of": "small", "layers": 2}}

    change(project, add)
    with pytest.raises(
        ConfigError, match=r"models\.smaller\.init\.layers: 2, but small has 1; keep"
    ):
        check(project, good())


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ({"layers": [[1, 3]]}, r"states\.layers: there is no pair \[1, 3\]; .*0 to 2, .* to 2"),
        ({"layers": "kept", "from": "others"}, r"states\.layers: kept, but the student was not"),
        ({"layers": "kept"}, None),
        (
            {"kind": "flow", "layers": [[1, 1]]},
            r"states\.layers: a single place, but flow compares one place with",
        ),
        ({"kind": "attention", "layers": [[2, 0]]}, r"states\.layers: there is no pair \[2, 0\]"),
        ({"kind": "attention", "heads": 5}, r"states: heads: the 32 numbers of q_proj .* 5 heads"),
        ({"kind": "relation", "from": "choices"}, r"states.*: it compares states, but .*choices"),
    ],
)
def test_hidden_states_that_do_not_exist_are_refused_before_any_training(
    project: Path, term: dict[str, Any], message: str | None
) -> None:
    def add(params: Any) -> None:
        params["models"]["second"] = {"init": {"kind": "source", "source": "path:sources/second"}}
        params["signals"]["states"] = {"kind": "hidden_states", "of": "teacher"}
        params["signals"]["others"] = {"kind": "hidden_states", "of": "second"}
        states = {"kind": "hidden", "from": "states", **term}
        params["models"]["first"]["learn"]["states"] = states

    change(project, add)
    shutil.copytree(project / "data/model/base", project / "data/model/second")
    if message is None:
        check(project, good())
    else:
        with pytest.raises(ConfigError, match=r"models\.first\.learn\." + message):
            check(project, good())


def test_a_length_that_leaves_no_room_is_refused_and_one_that_cuts_is_warned_of(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change(project, lambda params: params["prompt"].update(max_length=10))
    check(project, good())
    assert "longer than prompt.max_length = 10, so that the start" in caplog.text
    assert "is lost: 20 of 20 examples" in caplog.text
    splits = good()
    change(project, lambda params: params["prompt"].update(max_length=8))
    splits["train"][3] = replace(splits["train"][3], choices=("w " * 9,) * 4, response="w " * 9)
    with pytest.raises(
        DataValidationError, match=r"a/train3: .*no room for the question; raise prompt"
    ):
        check(project, splits)


def test_a_system_prompt_that_leaves_no_room_for_answers_is_refused(project: Path) -> None:
    chat = {"format": "chat", "max_length": 128, "chat": {"system": "Be short. " * 9}}
    change(project, lambda params: params["prompt"].update(chat))
    give_template(project)
    splits = {name: as_open_text(examples) for name, examples in good().items()}
    change(project, lambda params: params["evaluate"]["open_text"].update(max_new_tokens=64))
    with pytest.raises(DataValidationError, match=r"models.base: .*any system prompt take"):
        check(project, splits)


def test_a_test_conversation_with_too_long_a_system_prompt_is_refused(project: Path) -> None:
    """Before a model is trained that would have to answer it."""
    change(project, lambda params: params["prompt"].update(format="chat", max_length=128))
    give_template(project)
    splits = {name: as_open_text(examples) for name, examples in good().items()}
    change(project, lambda params: params["evaluate"]["open_text"].update(max_new_tokens=64))
    long = (Turn("system", "Be short. " * 9),)
    splits["test"][2] = replace(splits["test"][2], history=long)
    with pytest.raises(DataValidationError, match=r"a/test2: .*any system prompt take"):
        check(project, splits)


def test_more_choices_than_letters_are_refused(project: Path) -> None:
    change(project, lambda params: params["prompt"].update(format="letter"))
    splits = good()
    many = tuple(f"w{number}" for number in range(27))
    splits["test"][2] = replace(splits["test"][2], choices=many, response="w2")
    with pytest.raises(ConfigError, match=r"prompt\.format: letter: example a/test2 has 27"):
        check(project, splits)


def succeeded(root: Path, split: str) -> list[bool]:
    expectations = read_json(root / "data/validate/summary.json")[split]["expectations"]
    assert expectations
    return [outcome["success"] for outcome in expectations.values()]


SPOILED: list[tuple[str, int, dict[str, Any], str]] = [
    ("train", 0, {"id": "a/train1"}, "id_unique: 2 rows: a/train1, a/train1"),
    ("train", 2, {"answer_index": 4}, "answer_index_within_choices: 1 row: a/train2"),
    ("train", 3, {"answer_index": -1}, "answer_index_not_negative: 1 row: a/train3"),
    ("train", 4, {"choices": ("w",)}, "choices_two_or_more: 1 row: a/train4"),
    ("train", 5, {"choices": ("w", "x", " ")}, "choices_not_blank: 1 row: a/train5"),
    ("train", 6, {"prompt": "word " * 300}, "prompt_tokens_within_limit: 1 row: a/train6"),
    ("calibration", 0, {"response": "v"}, "response_is_chosen_choice: 1 row: a/calibration0"),
    ("calibration", 1, {"id": "a/test0"}, "id_in_one_split: 1 row: a/test0"),
    ("test", 0, {"prompt": " \n"}, "prompt_not_blank: 1 row: a/test0"),
    ("test", 1, {"response": ""}, "response_not_blank: 1 row: a/test1"),
    ("test", 2, {"answer_index": None}, "response_is_chosen_choice: 2 rows: a/test1, a/test2"),
    ("test", 4, {"choices": ("w", "word " * 90)}, "response_tokens_within_limit: 1 row: a/test4"),
    ("test", 3, {"split": "train"}, "split_as_file: 1 row: a/test3"),
    ("ood_b", 0, {"prompt": "the test question 7"}, "question_in_one_split: 1 row: a/ood_b0"),
    ("ood_b", 1, {"group": "passage/1"}, "group_in_one_split: 1 row: a/ood_b1"),
    ("train", 7, {"group": "passage/1"}, "group_in_one_split: 1 row: a/train7"),
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


def change(project: Path, edit: Callable[[Any], None]) -> None:
    yaml = YAML()
    params = yaml.load(project / "params.yaml")
    edit(params)
    yaml.dump(params, project / "params.yaml")


def set_validate(project: Path, **values: object) -> None:
    change(project, lambda params: params["validate"].update(values))


def test_answers_that_are_always_the_same_fail(project: Path) -> None:
    set_validate(project, min_answer_share=0.1, min_answer_questions=8)
    splits = good()
    splits["test"] = [replace(each, answer_index=2, response="y") for each in splits["test"]]
    with pytest.raises(DataValidationError) as caught:
        check(project, splits)
    assert (
        "test.parquet: answer_share_0: observed 0.0 (validate.min_answer_share = 0.1, checked once "
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
    # a variant of a training question, as prepare.augment makes them
    asked = splits["train"][1].prompt
    splits["unlabelled"][1] = replace(splits["unlabelled"][1], prompt=asked, choices=tuple("zyxw"))
    check(project, splits)
    assert all(succeeded(project, "unlabelled"))
    summary = read_json(project / "data/validate/summary.json")["unlabelled"]
    assert "no_answer_index" in summary["expectations"]
    assert not any(name.startswith("answer_share") for name in summary["expectations"])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"answer_index": 0}, "no_answer_index: 1 row: a/unlabelled2"),
        ({"response": "w"}, "response_empty: 1 row: a/unlabelled2"),
        ({"prompt": "The TEST question 1"}, "question_in_one_split: 1 row: a/unlabelled2"),
        ({"group": "passage/1"}, "group_in_one_split: 1 row: a/unlabelled2"),
        ({"choices": ("w",)}, "choices_two_or_more: 1 row: a/unlabelled2"),
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
    warned = "ood_b.parquet: choices_distinct: 1 row: a/ood_b0 (fetch.datasets.a)"
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
    permute_tokenizer(judge)  # of as many tokens
    with pytest.raises(
        ConfigError,
        match=r"models\.first\.learn\.tokens\.from: signals\.tokens uses judge's tokenizer",
    ):
        check(project, good())


def test_open_text_for_a_tokenizer_without_an_end_token_names_the_model(project: Path) -> None:
    base = project / "data/model/base"
    shutil.copytree(base.resolve(), project / "copy")
    base.unlink()
    (project / "copy").rename(base)
    settings = base / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace('"eos_token": "</s>"', '"eos_token": null'))
    splits = good()
    splits["train"][0] = as_open_text(splits["train"][:1])[0]
    with pytest.raises(ArtifactError, match=r"^models\.base: .* has no end-of-text token"):
        check(project, splits)


def test_a_chat_format_needs_a_template_that_fits(project: Path) -> None:
    chat = {"format": "chat", "max_length": 256, "chat": {"system": "Be short."}}
    change(project, lambda params: params["prompt"].update(chat))
    with pytest.raises(ConfigError, match=r"models\.base has no chat template; name one"):
        check(project, good())
    file = give_template(project)
    check(project, good())
    refusing = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system') }}{% endif %}"
    )
    file.write_text(refusing + file.read_text())
    with pytest.raises(DataValidationError, match=r"does not fit its turns .*: No system;"):
        check(project, good())


def set_view(project: Path, **view: object) -> None:
    change(project, lambda params: params["signals"]["choices"].update(view=view))


def test_a_view_that_does_not_fit_is_reported_before_anything_is_captured(project, caplog):
    set_view(project, shots=3, max_length=40)
    check(project, good())
    (told,) = [r.getMessage() for r in caplog.records if "signals.choices.view" in r.getMessage()]
    assert "28 of 28 questions are longer than 40 tokens" in told
    caplog.clear()
    set_view(project, shots=3)
    check(project, good())
    assert not [r for r in caplog.records if "signals.choices.view" in r.getMessage()]


def test_a_view_of_a_context_that_no_data_set_has_is_refused(project):
    set_view(project, context=True)
    with pytest.raises(ConfigError, match=r"signals\.choices\.view\.context: true, but no data"):
        check(project, good())


def test_a_view_of_more_tokens_than_the_model_reads_is_refused(project):
    set_view(project, shots=18, max_length=2000)
    splits = good()
    splits["train"] = [replace(e, prompt=f"{e.prompt} {'why ' * 30}") for e in splits["train"]]
    with pytest.raises(ConfigError, match=r"teacher reads at most 512; set max_length: 512"):
        check(project, splits)


def test_wrong_questions_are_named_before_a_view_reads_them(project):
    set_view(project, shots=18, max_length=2000)
    splits = good()
    splits["train"] = [replace(e, prompt=f"{e.prompt} {'why ' * 30}") for e in splits["train"]]
    splits["test"][3] = replace(splits["test"][3], split="train")
    with pytest.raises(DataValidationError, match="split_as_file: 1 row: a/test3"):
        check(project, splits)
