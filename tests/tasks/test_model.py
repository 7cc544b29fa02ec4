"""The stage that makes models: sources, pruned starts, and what is refused before training."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from firstkd.data.examples import Example, write_examples
from firstkd.errors import ArtifactError, ConfigError, SourceError
from firstkd.files import read_json, read_json_lines, sha256_of, write_json
from firstkd.models.folders import load_model, load_tokenizer
from firstkd.settings import load_settings
from tasks import model, signal
from tasks.graph import stages_of
from tests.tiny import HOMES, write_tiny_model, write_tiny_params

CHOICES = tuple(HOMES.values())[:4]
NARROW = {"kind": "narrow", "intermediate_size": 24}


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path) -> Path:
    """The tiny settings, the source of their model, and prepared examples.

    The start is cut from the source, so that no teacher has to be trained for it.
    """
    shutil.copytree(tiny_model, tmp_path / "sources/model")
    write_tiny_params(tmp_path)
    change(tmp_path, "models", "start", "init", "of", to="base")
    write_data(tmp_path, CHOICES)
    return tmp_path


def write_data(root: Path, choices: tuple[str, ...] | None) -> None:
    for split in ("train", "calibration"):
        answer = None if choices is None else 0
        examples = [
            Example(f"{split}/{n}", f"Tell {n} {split}", "in a den", choices, answer, "made", split)
            for n in range(8)
        ]
        write_examples(root / f"data/prepare/{split}.parquet", examples)


def change(root: Path, *path: str, to: Any) -> None:
    yaml = YAML()
    params = yaml.load(root / "params.yaml")
    section = params
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = to
    yaml.dump(params, root / "params.yaml")


def read_params(root: Path) -> Any:
    return YAML().load(root / "params.yaml")


def test_one_of_several_processes_makes_a_start(project: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    model.main(project, "base")
    assert not (project / "data/model").exists()
    monkeypatch.setenv("RANK", "0")
    model.main(project, "base")
    assert (project / "data/model/base").exists()


def taught(root: Path, recalibration: str = "none") -> None:
    """Make what the student learns from, with the base model as its teacher."""
    model.main(root, "base")
    model.main(root, "start")
    shutil.copytree(root / "data/model/base", root / "data/model/teacher")
    for name in ("choices", "tokens"):
        signal.main(root, name)
        fitted = root / f"data/calibrate/{name}/{recalibration}.json"
        write_json(fitted, {"kind": recalibration})
    for term in ("choices", "tokens"):
        change(root, "models", "first", "learn", term, "recalibrate", to=recalibration)


def test_a_source_is_the_model_that_was_made_elsewhere(project: Path) -> None:
    model.main(project, "base")
    assert sha256_of(project / "data/model/base") == sha256_of(project / "sources/model")


@pytest.mark.parametrize("weights", [None, "pytorch_model.bin"])
def test_a_source_without_safetensors_leaves_nothing(project: Path, weights: str | None) -> None:
    (project / "sources/model/model.safetensors").unlink()
    if weights:
        (project / "sources/model" / weights).write_bytes(b"pickle")
    with pytest.raises(
        SourceError, match=r"^models.base: path:sources/model has no weights in safetensors"
    ):
        model.main(project, "base")
    assert not (project / "data/model").exists() or not list((project / "data/model").iterdir())


def test_a_source_without_its_config_is_incomplete(project: Path) -> None:
    (project / "sources/model/config.json").unlink()
    with pytest.raises(SourceError, match=r"has no config\.json; it is incomplete"):
        model.main(project, "base")


def test_a_pruned_start_has_the_layers_that_matter(project: Path) -> None:
    change(project, "models", "start", "init", to={"kind": "prune", "of": "base", "layers": 1})
    model.main(project, "base")
    model.main(project, "start")
    before = sha256_of(project / "data/model/start")
    found = read_json(project / "data/model/start/metrics.json")
    (kept,) = found["kept"]
    assert found["influence"][kept] == max(found["influence"])
    start = load_model(project / "data/model/start", "fp32")
    base = load_model(project / "data/model/base", "fp32")
    assert start.config.num_hidden_layers == len(start.base_model.layers) == 1
    expected = base.base_model.layers[kept].state_dict()
    for name, weights in start.base_model.layers[0].state_dict().items():
        assert torch.equal(weights, expected[name].bfloat16().float())
    model.main(project, "start")
    assert sha256_of(project / "data/model/start") == before


def test_more_layers_than_there_are_is_refused(project: Path) -> None:
    model.main(project, "base")
    change(project, "models", "start", "init", to={"kind": "prune", "of": "base", "layers": 3})
    with pytest.raises(ConfigError, match="layers: 3, but base has 2"):
        model.main(project, "start")


def test_a_narrow_start_keeps_layers_and_loses_neurons(project: Path) -> None:
    change(project, "models", "start", "init", to={**NARROW, "of": "base"})
    model.main(project, "base")
    model.main(project, "start")
    base, start = (load_model(project / f"data/model/{name}") for name in ("base", "start"))
    assert start.config.num_hidden_layers == base.config.num_hidden_layers
    assert start.config.intermediate_size == 24 < base.config.intermediate_size
    measured = read_json(project / "data/model/start/metrics.json")
    assert all(0 < share < 1 for share in measured["unexplained_share_of_output"])
    made = sha256_of(project / "data/model/start")
    model.main(project, "start")
    assert sha256_of(project / "data/model/start") == made


def test_an_average_has_the_mean_of_each_weight(project: Path) -> None:
    parts = {
        "same": {"kind": "copy"},
        "eight": {"kind": "quantise", "weights": "q8_0"},
        "four": {"kind": "quantise", "weights": "q4_0"},
    }
    for name, init in parts.items():
        change(project, "models", name, to={"init": {**init, "of": "base"}})
    change(project, "models", "mean", to={"init": {"kind": "average", "of": [*parts]}})
    for name in ("base", *parts, "mean"):
        model.main(project, name)
    found, *others = (
        load_model(project / f"data/model/{name}", "fp32").state_dict() for name in ("mean", *parts)
    )
    assert any(not torch.equal(others[0][name], others[2][name]) for name in found)
    for name, weights in found.items():
        expected = torch.stack([other[name].double() for other in others]).mean(0)
        torch.testing.assert_close(weights.double(), expected, rtol=2**-8, atol=0)
    made = sha256_of(project / "data/model/mean")
    model.main(project, "mean")
    assert sha256_of(project / "data/model/mean") == made


@pytest.mark.parametrize(
    ("of", "wrong"),
    [
        (["base"], "at least 2 items"),
        (["base", "base"], "names a model twice: base, base"),
        (["base", "none"], "there is no 'none' among models"),
    ],
)
def test_an_average_is_of_several_models(project: Path, of: list[str], wrong: str) -> None:
    change(project, "models", "mean", to={"init": {"kind": "average", "of": of}})
    with pytest.raises(ConfigError, match=wrong):
        load_settings(project / "params.yaml")


@pytest.mark.parametrize("smaller", [{"kind": "prune", "layers": 1}, NARROW])
def test_a_start_is_the_same_on_every_processor(
    project: Path, monkeypatch: pytest.MonkeyPatch, smaller: dict[str, Any]
) -> None:
    """In bfloat16, sums in another order were taken for a fault of the pruned model."""
    change(project, "models", "start", "init", to={**smaller, "of": "base"})
    model.main(project, "base")
    made = []
    for has_bfloat16 in (True, False):
        can = {"avx512_bf16": has_bfloat16}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda can=can: can)
        model.main(project, "start")
        made.append(sha256_of(project / "data/model/start"))
    assert made[0] == made[1]


def test_more_neurons_than_there_are_is_refused(project: Path) -> None:
    narrow = {"kind": "narrow", "of": "base", "intermediate_size": 1000}
    change(project, "models", "start", "init", to=narrow)
    model.main(project, "base")
    with pytest.raises(ConfigError, match=r"models\.start: intermediate_size: 1000, but base has"):
        model.main(project, "start")


def test_a_name_that_is_not_there_is_refused(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no models\.frist; allowed: base, teacher"):
        model.main(project, "frist")


def test_a_student_learns_its_terms_from_where_it_starts(project: Path) -> None:
    taught(project)
    model.main(project, "first")
    folder = project / "data/model/first"
    curve = read_json_lines(folder / "training.jsonl")
    assert {"choices", "tokens", "choices_agreement", "tokens_head_mass"} <= curve[0].keys()
    for point in curve:
        weight = 0.5 * (1 - (point["step"] - 1) / len(curve))
        expected = point["choices"] + weight * point["tokens"] + 0.5 * point["right"]
        assert point["loss"] == pytest.approx(expected, rel=1e-6)
    assert "step_tokens" not in curve[0]
    learned = load_model(folder, "fp32").state_dict()
    started = load_model(project / "data/model/start", "fp32").state_dict()
    assert learned.keys() == started.keys()
    assert any(not torch.equal(learned[name], started[name]) for name in started)
    assert not list((project / "data/.train").glob("*"))
    before = sha256_of(folder)
    model.main(project, "first")
    assert sha256_of(folder) == before


def test_choices_of_open_text_are_refused_by_the_term(project: Path) -> None:
    write_data(project, choices=None)
    taught(project)
    with pytest.raises(
        ConfigError,
        match=r"models\.first\.learn\.choices: no training question has what choice_kl compares",
    ):
        model.main(project, "first")


def test_open_text_is_learned_from_tokens_alone(project: Path) -> None:
    write_data(project, choices=None)
    taught(project)
    term = {"kind": "sparse_kl", "from": "tokens", "recalibrate": "none"}
    change(project, "models", "first", "learn", to={"tokens": term})
    model.main(project, "first")
    assert (project / "data/model/first/model.safetensors").exists()


def test_stored_states_teach_what_live_ones_do(project: Path) -> None:
    taught(project)
    states = {"kind": "hidden_states", "of": "teacher"}
    terms = {"right": {"kind": "gold_choice"}, "states": {"kind": "hidden", "from": "states"}}
    change(project, "models", "first", "learn", to=terms)
    change(project, "signals", "states", to=states)
    model.main(project, "first")
    curves = [read_json_lines(project / "data/model/first/training.jsonl")]
    change(project, "signals", "states", to={**states, "live": False})
    signal.main(project, "states")
    shutil.rmtree(project / "data/model/teacher")  # which the training no longer needs
    model.main(project, "first")
    curves.append(read_json_lines(project / "data/model/first/training.jsonl"))
    live, stored = ([point["states"] for point in curve] for curve in curves)
    assert stored == pytest.approx(live, rel=1e-2)  # bfloat16 instead of float32
    assert min(stored) > 1e-4


def test_a_signal_of_other_data_is_refused(project: Path) -> None:
    taught(project)
    write_data(project, CHOICES[:3])
    with pytest.raises(ArtifactError, match=r"choices/train lacks 8 examples, including train/0; "):
        model.main(project, "first")


def test_a_recalibration_that_was_not_fitted_is_named(project: Path) -> None:
    taught(project)
    (project / "data/calibrate/tokens/none.json").unlink()
    with pytest.raises(ArtifactError, match=r"calibrate/tokens/none\.json is missing"):
        model.main(project, "first")


def test_token_ids_of_another_tokenizer_are_refused(project: Path) -> None:
    taught(project)
    other = project / "data/model/start"
    shutil.rmtree(other)
    write_tiny_model(other, layers=1)
    tokenizer = (other / "tokenizer.json").read_text(encoding="utf-8")
    (other / "tokenizer.json").write_text(tokenizer.replace('"<pad>"', '"<nil>"'))
    with pytest.raises(
        ConfigError, match=r"models\.first\.learn\.tokens\.from: signals\.tokens holds token ids"
    ):
        model.main(project, "first")


def test_a_chat_template_of_ones_own_goes_with_every_model_made_from_it(project: Path) -> None:
    own = "{% for m in messages %}{{ m['content'] }}</s>{% endfor %}"
    (project / "sources/chat.jinja").write_text(own)
    change(project, "models", "base", "init", "chat_template", to="sources/chat.jinja")
    for name in ("base", "start"):
        model.main(project, name)
        assert load_tokenizer(project / "data/model" / name).chat_template == own
    change(project, "models", "base", "init", "chat_template", to="sources/none.jinja")
    with pytest.raises(SourceError, match=r"chat_template: .*none\.jinja cannot be read"):
        model.main(project, "base")
    change(project, "models", "base", "init", "chat_template", to="sources/../chat.jinja")
    with pytest.raises(ConfigError, match=r"init\.chat_template: .* lies outside sources/"):
        model.main(project, "base")


def test_a_student_learns_from_the_examples_that_differ_most(project: Path) -> None:
    taught(project)
    change(project, "signals", "smaller", to=read_params(project)["signals"]["tokens"])
    change(project, "signals", "smaller", "of", to="start")
    signal.main(project, "smaller")
    change(project, "train", "distill", "micro_batch_size", to=1)
    change(project, "models", "first", "keep", to={"of": "tokens", "less": "smaller", "share": 0.5})
    stages = {stage.name: stage for stage in stages_of(load_settings(project / "params.yaml"))}
    for file in ("firstkd/signals/difference.py", "tasks/chosen.py"):
        assert file in stages["model-first"].code and file not in stages["model-sft"].code
    assert "data/signal/smaller/train" in stages["model-first"].inputs
    model.main(project, "first")
    assert len(read_json_lines(project / "data/model/first/training.jsonl")) == 4  # of 8


def test_a_start_from_scratch_trains_at_the_rates_of_its_width(project: Path) -> None:
    init = {"kind": "scratch", "of": "base", "hidden_size": 64, "layers": 1, "base_width": 32}
    change(project, "models", "start", "init", to=init)
    model.main(project, "base")
    model.main(project, "start")
    before = sha256_of(project / "data/model/start")
    start = load_model(project / "data/model/start", "fp32")
    assert (start.config.hidden_size, start.config.mup_base_width) == (64, 32)
    assert start.config.num_hidden_layers == len(start.base_model.layers) == 1
    assert (start.base_model.norm.weight == 0.5).all()
    model.main(project, "start")
    assert sha256_of(project / "data/model/start") == before
    stages = {stage.name: stage for stage in stages_of(load_settings(project / "params.yaml"))}
    assert "firstkd/models/width.py" in stages["model-start"].code
    assert "firstkd/models/width.py" not in stages["model-sft"].code
    model.main(project, "sft")
    found = load_model(project / "data/model/sft", "fp32")
    assert found.config.mup_base_width == 32
    change(project, "models", "start", "init", "hidden_size", to=40)
    with pytest.raises(ConfigError, match=r"models\.start: hidden_size: 40 would need"):
        model.main(project, "start")
