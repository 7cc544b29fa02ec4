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
        (("finetune", "epoch"), 3, r"finetune: unknown key 'epoch' \(value 3\); allowed: .*epochs"),
        (("distill", "learning_rate"), 0, r"distill.learning_rate: 0 is not allowed"),
        (("prompt", "format"), "chat", r"prompt.format: 'chat' is not allowed: .*'cloze'"),
        (("prepare", "fractions", "test"), 0.5, r"prepare.fractions: .* must be 1, not 1.25"),
        (("evaluate", "models", "sft"), "distill/none", r"'distill/none' is no model; allowed"),
        (("record", "arm"), "second", r"record.arm: 'second' is no arm; allowed: .*first"),
        (("arms", "first", "choices"), -1, r"arms.first.choices: -1 is not allowed"),
        (("arms", "none"), {"recalibration": "none"}, r"arms.none: one of choices, tokens"),
        (
            ("fetch", "datasets", "openbookqa", "columns"),
            {"question": "q"},
            r"openbookqa: columns: only for `format: questions`",
        ),
        (("fetch", "model", "source"), "ftp:x", r"fetch.model.source: 'ftp:x' is not allowed"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_what_is_allowed(
    tmp_path, path, value, message
):
    with pytest.raises(ConfigError, match=message):
        load_settings(with_changes(tmp_path, *path, to=value))


COMMIT = "c" * 40


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("path:model", r"fetch.model: model lies outside sources/, where .* or pin it"),
        ("path:sources/../model", "lies outside sources/"),
        ("path:/models/large", "/models/large lies outside sources/"),
        ("hub:org/name@main", r"org/name@main names no commit .* may move, or pin it"),
        ("hub:datasets/org/name@main/a.jsonl", "names no commit"),
        ("path:sources-of-mine/model", "lies outside sources/"),
        ("path:sources/model", None),
        ("path:sources/", None),
        (f"hub:org/name@{COMMIT}", None),
        (f"hub:datasets/org/name@{COMMIT}/a.jsonl", None),
    ],
)
def test_what_could_change_unnoticed_must_be_pinned(tmp_path, source, message):
    pinned = with_changes(tmp_path, "fetch", "model", to={"source": source, "sha256": "0" * 64})
    assert load_settings(pinned).fetch.model.source == source
    loose = with_changes(tmp_path, "fetch", "model", to={"source": source})
    if message is None:
        load_settings(loose)
    else:
        with pytest.raises(ConfigError, match=message):
            load_settings(loose)


def test_the_arms_that_are_commented_out_are_valid(tmp_path):
    text = (REPOSITORY / "params.yaml").read_text()
    commented = re.compile(r"^( +)# (direct|label_smoothing|first_paper): ", re.MULTILINE)
    (tmp_path / "params.yaml").write_text(commented.sub(r"\1\2: ", text))
    settings = load_settings(tmp_path / "params.yaml")
    assert set(settings.arms) == {"sft", "first", "direct", "label_smoothing", "first_paper"}
    assert settings.arms["first_paper"].tail == "renormalise"


def test_a_missing_setting_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"finetune.epochs: missing"):
        load_settings(with_changes(tmp_path, "finetune", "epochs", remove=True))


def test_several_mistakes_are_told_at_once(tmp_path):
    path = with_changes(tmp_path, "finetune", "epochs", to=0)
    text = path.read_text().replace("top_k: 5", "top_k: 0")
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"finetune.epochs: 0(.|\n)*extract.top_k: 0"):
        load_settings(path)


def test_broken_yaml_and_a_missing_file_are_named(tmp_path):
    (tmp_path / "params.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_settings(tmp_path / "params.yaml")
    with pytest.raises(ConfigError, match="is missing"):
        load_settings(tmp_path / "elsewhere.yaml")


@pytest.mark.parametrize(
    ("comment", "problem"),
    [
        ("# Größe".encode("latin-1"), r"params\.yaml, line 2: not UTF-8 .*save the file as UTF-8"),
        ("# “size”".encode("cp1252"), r"params\.yaml, line 2: not UTF-8 .*save the file as UTF-8"),
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
    path = with_changes(tmp_path, "finetune", "learning_rate", to=1.0)
    path.write_text(path.read_text().replace("learning_rate: 1.0", "learning_rate: 2e-6", 1))
    assert load_settings(path).finetune.learning_rate == 2e-6
