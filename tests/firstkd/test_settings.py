import re

import pytest
from ruamel.yaml import YAML

from firstkd.errors import ConfigError
from firstkd.settings import load_settings
from tests.tiny import REPOSITORY


def with_changes(tmp_path, *path, to=None, remove=False):
    yaml = YAML()
    params = yaml.load(REPOSITORY / "params.yaml")
    section = params
    for key in path[:-1]:
        section = section[key]
    if remove:
        del section[path[-1]]
    else:
        section[path[-1]] = to
    yaml.dump(params, tmp_path / "params.yaml")
    return tmp_path / "params.yaml"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            ("train", "distill", "epoch"),
            3,
            r"train.distill: unknown key 'epoch' \(value 3\); allowed: .*epochs",
        ),
        (("train", "distill", "learning_rate"), 0, "train.distill.learning_rate: 0 is not allowed"),
        (("prompt", "format"), "essay", r"prompt.format: 'essay' is not allowed: .*'cloze'"),
        (("prepare", "fractions", "test"), 0.5, r"prepare.fractions: .* must be 1, not 1.25"),
        (
            ("fetch", "datasets", "openbookqa", "columns"),
            {"question": "q"},
            r"fetch.datasets.openbookqa: columns: only for `format: questions`",
        ),
        (("models", "base", "init", "source"), "ftp:x", "models.base.init.source: 'ftp:x' is not"),
        (
            ("models", "start", "init", "intermediate_size"),
            0,
            "models.start.init.intermediate_size: 0 is not allowed",
        ),
        (("models", "start", "init", "layer"), 1, "models.start.init: unknown key 'layer'"),
        (
            ("models", "start", "init", "kind"),
            "shrink",
            r"models.start.init.kind: 'shrink' is not allowed; allowed: .*copy.*prune",
        ),
        (("models", "start", "init"), {"of": "base"}, "models.start.init.kind: missing"),
        (
            ("promote", "max_export_drop"),
            0.02,
            r"promote.max_export_drop: 0.02 is set, but no export .* \(average\) is evaluated",
        ),
        (("models", "first", "init", "of"), 3, "models.first.init.of: 3 is not allowed"),
        (
            ("models", "first", "learn", "choices", "kind"),
            "kl",
            r"models.first.learn.choices.kind: 'kl' is not allowed; allowed: .*choice_kl",
        ),
        (
            ("models", "first", "learn", "choices", "weight"),
            {"from": 1, "to": -1},
            "models.first.learn.choices.weight.to: -1 is not allowed",
        ),
        (
            ("models", "first", "learn", "choices", "weight"),
            {"from": 1},
            "models.first.learn.choices.weight.to: missing",
        ),
        (
            ("models", "first", "learn", "choices", "weight"),
            {"from": 1, "to": 0, "at": 3},
            "models.first.learn.choices.weight: unknown key 'at'",
        ),
        (
            ("models", "first", "learn", "choices", "weight"),
            -1,
            "models.first.learn.choices.weight: -1 is not allowed",
        ),
        (("models", "Bad"), {"init": {"kind": "copy", "of": "base"}}, "models.Bad: 'Bad' is"),
        (
            ("models", "first", "learn", "states"),
            {"kind": "hidden", "from": "choices", "distance": "cut"},
            "models.first.learn.states.distance: 'cut' is not allowed",
        ),
        (
            ("models", "sft", "learn"),
            {"sparse_kl": {}},
            r"models.sft.learn.sparse_kl.from: missing",
        ),
        (("models", "sft", "learn"), {}, "models.sft.learn: {} is not allowed"),
        (
            ("signals", "tokens"),
            {"kind": "tokens", "of": "teacher", "select": {"kind": "top_k", "k": 0}},
            "signals.tokens.select.k: 0 is not allowed",
        ),
        (("signals", "choices", "kind"), "top", r"signals.choices.kind: 'top' is not allowed; all"),
        (
            ("signals", "choices", "top_k"),
            5,
            "signals.choices: unknown key 'top_k' .*; allowed: ",
        ),
        (("signals", "pooled"), {"kind": "mean", "of": ["choices"]}, r"signals.pooled.of: .* is"),
        (("evaluate", "models"), ["first", "second"], r"evaluate.models.1: 'second' is not among"),
        (
            ("record", "student"),
            "base",
            r"record.student: 'base' is not evaluated; add it to evaluate.models or choose one",
        ),
        (("train", "distill", "lora"), {"rank": 0, "alpha": 1}, "train.distill.lora.rank: 0 is"),
        (
            ("train", "distill", "schedule"),
            {"kind": "wsd", "data": ["openbookqa"]},
            r"train.distill.schedule.data: openbookqa is not .* allowed: commonsenseqa, unanswered",
        ),
        (("serve", "policy"), {"max_error": 0, "confidence": 0.9}, "serve.policy.max_error: 0 is"),
        (("promote", "min_coverage"), 0.3, r"promote.min_coverage: 0.3 .* serve.policy, which is"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_what_is_allowed(
    tmp_path, path, value, message
):
    with pytest.raises(ConfigError, match=r"/params\.yaml: " + message) as raised:
        load_settings(with_changes(tmp_path, *path, to=value))
    assert "\n" not in str(raised.value)


def test_what_lora_would_add_to_rounded_weights_is_refused(tmp_path):
    yaml = YAML()
    params = yaml.load(REPOSITORY / "params.yaml")
    params["train"]["distill"]["lora"] = {"rank": 4, "alpha": 8}
    params["models"]["rounded"] = {
        "init": {"kind": "quantise", "of": "teacher", "weights": "q4_0"},
        "train": "distill",
        "learn": {"gold": {"kind": "gold"}},
    }
    yaml.dump(params, tmp_path / "params.yaml")
    message = "models.rounded.train: lora adds unrounded values to rounded weights"
    with pytest.raises(ConfigError, match=message):
        load_settings(tmp_path / "params.yaml")


COMMIT = "c" * 40


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "path:model",
            r"models.base.init: model lies outside sources/, so .* unnoticed: .* or pin it",
        ),
        ("path:sources/../model", "lies outside sources/"),
        ("path:/models/large", "/models/large lies outside sources/"),
        ("hub:org/name@main", r"org/name@main names no commit .* may change: add one, or pin it"),
        ("hub:datasets/org/name@main/a.jsonl", "names no commit"),
        ("path:sources-of-mine/model", "lies outside sources/"),
        ("path:sources/model", None),
        ("path:sources/", None),
        (f"hub:org/name@{COMMIT}", None),
        (f"hub:datasets/org/name@{COMMIT}/a.jsonl", None),
    ],
)
def test_what_could_change_unnoticed_must_be_pinned(tmp_path, source, message):
    init = {"kind": "source", "source": source}
    pinned = with_changes(tmp_path, "models", "base", "init", to={**init, "sha256": "0" * 64})
    assert load_settings(pinned).models["base"].init.source == source
    loose = with_changes(tmp_path, "models", "base", "init", to=init)
    if message is None:
        load_settings(loose)
    else:
        with pytest.raises(ConfigError, match=message):
            load_settings(loose)


def test_the_models_that_are_commented_out_are_valid(tmp_path):
    text = (REPOSITORY / "params.yaml").read_text()
    commented = re.compile(r"^  # ((?:mixed|hard):.*|  .*)$", re.MULTILINE)
    (tmp_path / "params.yaml").write_text(commented.sub(r"  \1", text))
    settings = load_settings(tmp_path / "params.yaml")
    assert settings.models["mixed"].learn["choices"].gold_share == 0.5
    assert settings.models["hard"].signals == ["choices"]


def test_a_missing_setting_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"train.finetune.epochs: missing"):
        load_settings(with_changes(tmp_path, "train", "finetune", "epochs", remove=True))
    with pytest.raises(ConfigError, match=r"models.start.init.intermediate_size: missing"):
        load_settings(
            with_changes(tmp_path, "models", "start", "init", "intermediate_size", remove=True)
        )


def test_several_mistakes_are_told_at_once(tmp_path):
    path = with_changes(tmp_path, "train", "finetune", "epochs", to=0)
    text = path.read_text().replace("intermediate_size: 880", "intermediate_size: 0")
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_settings(path)
    first, second = str(raised.value).splitlines()
    assert ": models.start.init.intermediate_size: 0 is not allowed" in first
    assert ": train.finetune.epochs: 0 is not allowed" in second


def test_broken_yaml_and_a_missing_file_are_named(tmp_path):
    (tmp_path / "params.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_settings(tmp_path / "params.yaml")
    with pytest.raises(ConfigError, match="is missing"):
        load_settings(tmp_path / "elsewhere.yaml")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("runtime:\n\tseed: 17", r"line 2: not valid YAML: found character .* indent with spaces"),
        ("runtime:\n  seed: 1\n  seed: 2", r"line 3: not valid YAML: found duplicate key \"seed\""),
        ("runtime: {}\n---\nruntime: {}", r"line 2: not valid YAML: but found another document"),
        ("runtime: !env SEED", r"line 1: not valid YAML: could not determine a constructor"),
        ("", "expected sections of settings, found nothing; restore the file"),
        ("# nothing but this", "expected sections of settings, found nothing; restore the file"),
        ("- runtime", "expected sections of settings, found list; restore the file"),
    ],
)
def test_what_is_not_a_file_of_settings_is_one_line(tmp_path, line, problem):
    (tmp_path / "params.yaml").write_text(line + "\n")
    with pytest.raises(ConfigError, match=problem) as caught:
        load_settings(tmp_path / "params.yaml")
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_in_the_place_of_the_settings_is_named(tmp_path):
    with pytest.raises(ConfigError, match="is missing or a folder"):
        load_settings(tmp_path)


@pytest.mark.parametrize("section", ["serve", "models", "fetch"])
def test_a_section_with_nothing_below_it_is_named(tmp_path, section):
    with pytest.raises(ConfigError, match=rf"{section}: empty; write its keys below it"):
        load_settings(with_changes(tmp_path, section, to=None))


@pytest.mark.parametrize(
    ("comment", "problem"),
    [
        ("# Größe".encode("latin-1"), r"params\.yaml, line 2: not UTF-8 .*save the file as UTF-8"),
        ("# “size”".encode("cp1252"), r"params\.yaml, line 2: not UTF-8 .*save the file as UTF-8"),
        ("# Straße".encode("utf-16"), r"params\.yaml, line 2: not UTF-8 .*save the file as UTF-8"),
        (b"# a bell \x07", r"params\.yaml: the character U\+0007 at position \d+ is not allowed"),
    ],
)
def test_another_encoding_is_one_line(tmp_path, comment, problem):
    text = (REPOSITORY / "params.yaml").read_bytes()
    (tmp_path / "params.yaml").write_bytes(b"# first\n" + comment + b"\n" + text)
    with pytest.raises(ConfigError, match=problem) as caught:
        load_settings(tmp_path / "params.yaml")
    assert len(str(caught.value).splitlines()) == 1
    (tmp_path / "params.yaml").write_bytes("\ufeff# Größe\n".encode() + text)
    load_settings(tmp_path / "params.yaml")


def test_numbers_in_scientific_notation_are_numbers(tmp_path):
    path = with_changes(tmp_path, "train", "finetune", "learning_rate", to=0.5)
    path.write_text(path.read_text().replace("learning_rate: 0.5", "learning_rate: 2e-6", 1))
    assert load_settings(path).train["finetune"].learning_rate == 2e-6


def test_a_name_that_no_file_could_have_is_refused(tmp_path):
    path = with_changes(tmp_path, "evaluate", "models", to=["a" * 300])
    with pytest.raises(ConfigError, match="should have at most 64 characters"):
        load_settings(path)


def test_a_student_has_one_threshold(tmp_path):
    yaml = YAML()
    params = yaml.load(REPOSITORY / "params.yaml")
    params["serve"]["policy"] = {"max_error": 0.1, "confidence": 0.9}
    yaml.dump(params, tmp_path / "params.yaml")
    assert load_settings(tmp_path / "params.yaml").serve.policy is not None
    params["serve"]["abstain_below"] = 0.5
    yaml.dump(params, tmp_path / "params.yaml")
    with pytest.raises(ConfigError, match=r"serve: policy and abstain_below \(0.5\) both set the"):
        load_settings(tmp_path / "params.yaml")
