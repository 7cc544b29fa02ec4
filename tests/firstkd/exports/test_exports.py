"""Exported files say what the model says: in ONNX Runtime, and read back from GGUF."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import normalizers, pre_tokenizers
from transformers import GemmaConfig, GemmaForCausalLM, Qwen3MoeConfig

from firstkd.data.examples import Example
from firstkd.data.prompts import encode
from firstkd.data.settings import PromptSettings
from firstkd.errors import ConfigError
from firstkd.exports import onnx, reader
from firstkd.exports.base import Exported, end_ids
from firstkd.exports.gguf import GgufExport
from firstkd.exports.onnx import OnnxExport
from firstkd.exports.safetensors import SafetensorsExport
from firstkd.files import read_json, sha256_of, write_json
from firstkd.models.folders import load_model, load_tokenizer
from firstkd.models.folding import fold_temperature
from firstkd.models.gguf import convert_gguf
from firstkd.models.scoring import score_questions
from tests.tiny import REPOSITORY

PROMPT = PromptSettings(format="cloze", max_length=60)
EXAMPLES = [
    Example("0", "Where does the fox live?", "in a den", ("in a den", "in a hive"), 0, "a"),
    Example("1", "Where </s> is  it? – ähm", "here", ("here", "in the old sea", "s"), 0, "a"),
    Example("2", "Where? " * 60 + "x", "here", ("here", "in the old sea"), 0, "a"),
]
T = 2.5
TOLERANCES = {".onnx": 1e-5, ".gguf": 1e-3}
"""Of scores: float32, and float16."""


def export(kind, weights):
    return kind(kind=kind.model_fields["kind"].annotation.__args__[0], of="first", weights=weights,
                license="Apache-2.0")  # fmt: skip


def exported(folder, facts="{}"):
    return Exported(load_model(folder, "fp32").eval(), load_tokenizer(folder), facts)


def written(kind, weights, model_folder, folder, folded=False):
    """An export as its stage writes it, of a model with T = 2.5, beside the weights or in them."""
    what = exported(model_folder)
    assert not folded or fold_temperature(what.model, T)
    what.model.config.save_pretrained(folder)
    what.tokenizer.save_pretrained(folder)
    export(kind, weights).write(what, folder / kind.file_name)
    files = (kind.file_name, *kind.beside)
    facts = {
        "temperature": 1.0 if folded else T,
        "prompt": PROMPT.model_dump(),
        "choices": None,
        "policy": {"threshold": 0.999},
        "start_ids": [],
        "file": kind.file_name,
        "sha256": {name: sha256_of(folder / name) for name in files},
    }
    write_json(folder / reader.FACTS, facts)
    (folder / "answer.py").write_bytes(Path(reader.__file__).read_bytes())
    return folder


@pytest.fixture(scope="module", params=[(OnnxExport, "fp32"), (GgufExport, "f16")])
def folder(request, tiny_model, tmp_path_factory):
    return written(*request.param, tiny_model, tmp_path_factory.mktemp("export"))


def test_the_runtime_scores_as_torch_does(folder, tiny_model):
    student = reader.Student(folder, threads=1)
    questions = encode(EXAMPLES, load_tokenizer(tiny_model), PROMPT)
    assert max(len(q.prompt) + len(r) for q in questions for r in q.responses) == PROMPT.max_length
    expected = score_questions(load_model(tiny_model, "fp32"), questions, 1)
    suffix = Path(student.facts["file"]).suffix
    for question, row in zip(questions, expected, strict=True):
        found = student.scores(question.prompt, question.responses)
        np.testing.assert_allclose(found, row[: len(found)], atol=TOLERANCES[suffix])


@pytest.mark.parametrize(("kind", "weights"), [(OnnxExport, "fp32"), (GgufExport, "f16")])
def test_the_runtime_divides_logits_by_the_temperature_in_the_weights(
    kind, weights, tiny_model, tmp_path
):
    student = reader.Student(written(kind, weights, tiny_model, tmp_path, folded=True), threads=1)
    prompt, tokens = [5, 9, 7, 30], range(3, 60)
    logits = load_model(tiny_model, "fp32")(torch.tensor([prompt])).logits[0, -1]
    expected = (logits / T).log_softmax(-1)[list(tokens)].tolist()
    found = student.scores(prompt, [[token] for token in tokens])
    np.testing.assert_allclose(found, expected, atol=TOLERANCES[Path(kind.file_name).suffix])


@pytest.mark.parametrize("choice_format", ["cloze", "letter"])
def test_the_reader_makes_the_ids_that_the_student_was_trained_on(
    folder, tiny_model, choice_format
):
    prompt = PROMPT.model_copy(update={"format": choice_format})
    student = reader.Student(folder)
    student.facts["prompt"] = prompt.model_dump()
    for example, question in zip(
        EXAMPLES, encode(EXAMPLES, load_tokenizer(tiny_model), prompt), strict=True
    ):
        found = student.encode(example.prompt.strip(), example.choices)
        assert found == (question.prompt, question.responses)


@pytest.mark.parametrize(
    ("choice_format", "choices", "words"),
    [
        ("letter", [f"in place {n}" for n in range(27)], "27 choices; this student answers with"),
        ("cloze", ["in a den", "in a hive " * 60], "leaves no room for the question"),
    ],
)
def test_what_the_student_could_not_be_asked_is_refused(folder, choice_format, choices, words):
    student = reader.Student(folder)
    student.facts["prompt"] = PROMPT.model_copy(update={"format": choice_format}).model_dump()
    with pytest.raises(reader.Unusable, match=words):
        student.answer("Where does it live?", choices)


def test_a_question_is_answered_without_firstkd_and_torch(folder):
    """The shipped file in an interpreter that can import neither."""
    blocked = "import sys; sys.modules['torch'] = sys.modules['firstkd'] = None; "
    run = f"import runpy; sys.argv[1:] = {['Where?', 'in a den', 'in a hive']}; "
    run += f"runpy.run_path({str(folder / 'answer.py')!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-I", "-c", blocked + run], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    student = reader.Student(folder)
    scores = torch.tensor(student.scores(*student.encode("Where?", ["in a den", "in a hive"])))
    np.testing.assert_allclose(found["probabilities"], (scores / T).softmax(-1), atol=1e-6)
    assert found["abstain"] and found["answer"] in ("in a den", "in a hive")


def test_a_program_ends_with_a_student_still_open_even_after_an_error(folder):
    """llama.cpp's server runs in threads of its own, which nobody tells to stop."""
    run = "from pathlib import Path; import answer; student = answer.Student(Path()); "
    run += "student.answer('Where?', ['in a den'])"
    command = [sys.executable, "-c", run]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "answer.Unusable: a question needs two choices or more"


@pytest.mark.integration
def test_a_question_is_answered_where_nothing_but_its_runtime_is_installed(folder, tmp_path):
    """In a fresh environment, from PyPI."""
    kinds = {kind.file_name: kind for kind in (OnnxExport, GgufExport)}
    runtime = kinds[reader.read(folder / reader.FACTS)["file"]].runtime
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python, constraints = tmp_path / "env/bin/python", REPOSITORY / "constraints.txt"
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", constraints]
    subprocess.run([*install, "numpy", "tokenizers", runtime], check=True)
    listed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True).stdout
    assert runtime in listed and "torch" not in listed and "firstkd" not in listed
    command = [python, "-I", folder / "answer.py", "Where?", "in a den", "in a hive"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    found = json.loads(done.stdout)["probabilities"]
    expected = reader.Student(folder).answer("Where?", ["in a den", "in a hive"])
    np.testing.assert_allclose(found, expected["probabilities"], atol=1e-5)


def test_a_changed_or_missing_file_is_refused_by_its_hash(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    name = reader.read(folder / reader.FACTS)["file"]
    with (tmp_path / name).open("r+b") as file:
        file.seek(1000)
        file.write(b"!")
    with pytest.raises(reader.Unusable, match=rf"{name} is not the file that was exported"):
        reader.Student(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(reader.Unusable, match=rf"{name} is missing"):
        reader.Student(tmp_path)


def test_llama_cpp_itself_splits_texts_into_the_same_ids(tiny_model, tmp_path):
    student = reader.Student(written(GgufExport, "f16", tiny_model, tmp_path))
    tokenizer = load_tokenizer(tiny_model)
    for text in ("Where does the red fox live?", " in  the sea", "12 foxes, 3 dens – ähm\n\tx"):
        asked = {"prompt": text, "n_predict": 1, "n_probs": 1, "temperature": 0.0}
        usage = student.model.server.handle_completions(asked)["usage"]
        assert usage["prompt_tokens"] == len(tokenizer(text)["input_ids"])


def read_back(file, folder):
    convert_gguf(file, folder)
    return load_model(folder, "fp32")


@pytest.mark.parametrize(("weights", "tolerance"), [("f16", 0.01), ("q8_0", 0.02), ("q4_0", 0.3)])
def test_gguf_read_back_by_transformers_is_the_model(tiny_model, tmp_path, weights, tolerance):
    """Names, rotations, shapes and metadata: a wrong one gives other logits altogether."""
    what, file = exported(tiny_model), tmp_path / "model.gguf"
    export(GgufExport, weights).write(what, file)
    ids = torch.arange(3, 40)[None]
    expected = what.model(ids).logits
    found = read_back(file, tmp_path / "back")(ids).logits
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()
    texts = ["Where does the red fox live?", " in  the sea"]
    tokenizers = load_tokenizer(tiny_model), load_tokenizer(tmp_path / "back")
    ours, theirs = (t(texts, add_special_tokens=False)["input_ids"] for t in tokenizers)
    assert ours == theirs


def test_an_mlp_whose_width_no_block_divides_is_filled_up(tiny_model, tmp_path):
    what, ids = exported(tiny_model), torch.arange(3, 40)[None]
    config = type(what.model.config)(**{**what.model.config.to_dict(), "intermediate_size": 55})
    model = type(what.model)(config).eval()
    export(GgufExport, "q8_0").write(replace(what, model=model), tmp_path / "model.gguf")
    found = read_back(tmp_path / "model.gguf", tmp_path / "back")
    assert found.config.intermediate_size == 64
    expected = model(ids).logits
    assert (found(ids).logits - expected).abs().max() <= 0.02 * expected.abs().max()


def test_gguf_is_the_same_bytes_and_holds_licence_ends_and_facts(tiny_model, tmp_path):
    from gguf import GGUFReader

    files = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    for file in files:
        what = exported(tiny_model, '{"temperature": 2.5}')
        what.model.generation_config.eos_token_id = [2, 7]
        export(GgufExport, "q8_0").write(what, file)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert end_ids(what.model, what.tokenizer) == [2, 7]
    fields = {name: field.contents() for name, field in GGUFReader(files[0]).fields.items()}
    assert fields["general.license"] == "Apache-2.0"
    assert fields["firstkd.calibration"] == '{"temperature": 2.5}'
    assert fields["tokenizer.ggml.eos_token_id"] == 2
    assert fields["tokenizer.ggml.eot_token_id"] == 7
    assert files[0].stat().st_size < 0.6 * sum(2 * p.numel() for p in what.model.parameters()) + 2e4


def test_a_folded_temperature_divides_all_logits(tiny_model):
    model, ids = load_model(tiny_model, "fp32"), torch.arange(3, 40)[None]
    before = model(ids).logits
    assert fold_temperature(model, T)
    torch.testing.assert_close(model(ids).logits, before / T)


def gemma():
    config = GemmaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    return GemmaForCausalLM(config).eval()


def test_a_temperature_that_no_weight_divides_by_leaves_the_model_as_it_was():
    model, ids = gemma(), torch.arange(3, 40)[None]
    before = model(ids).logits
    assert not fold_temperature(model, T)
    assert torch.equal(model(ids).logits, before)


def test_a_family_that_a_format_does_not_know_is_named():
    with pytest.raises(ConfigError, match=r"gguf export supports llama, .*, not gemma; export"):
        export(GgufExport, "f16").check(gemma().config, None)


def test_eight_bits_survive_a_unit_much_larger_than_the_others(tiny_model, tmp_path):
    model = load_model(tiny_model, "fp32").eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight *= 300  # so that all units matter
            layer.mlp.up_proj.weight[0] *= 1000
            layer.mlp.down_proj.weight[:, 0] /= 1000
    model.save_pretrained(tmp_path / "model")
    load_tokenizer(tiny_model).save_pretrained(tmp_path / "model")
    (tmp_path / "export").mkdir()
    student = reader.Student(
        written(OnnxExport, "int8", tmp_path / "model", tmp_path / "export"), threads=1
    )
    questions = encode(EXAMPLES, load_tokenizer(tiny_model), PROMPT)
    expected = score_questions(load_model(tmp_path / "model", "fp32"), questions, 1)
    for question, row in zip(questions, expected, strict=True):
        found = student.scores(question.prompt, question.responses)
        np.testing.assert_allclose(found, row[: len(found)], atol=0.05)


def test_eight_bits_of_a_row_are_the_nearest(tiny_model, tmp_path):
    written(SafetensorsExport, "int8", tiny_model, tmp_path)
    weights = load_model(tiny_model, "fp32").state_dict()
    found = load_file(tmp_path / "model.safetensors")
    scaled = {name.removesuffix("_scale") for name in found if name.endswith("_scale")}
    assert scaled == {name for name in weights if "_proj.weight" in name}
    for name, weight in weights.items():
        if name in scaled:
            steps = found[name].float()
            assert found[name].dtype == torch.int8 and steps.abs().amax(-1).eq(127).all()
            error = (steps * found[f"{name}_scale"] - weight).abs()
            assert (error <= found[f"{name}_scale"] * 0.5001).all()
        elif name in found:
            assert torch.equal(found[name], weight.bfloat16())
    described = read_json(tmp_path / "config.json")["quantization_config"]
    assert described["format"] == "int-quantized" and described["ignore"] == ["lm_head"]


def test_bfloat16_safetensors_are_the_model(tiny_model, tmp_path):
    written(SafetensorsExport, "bf16", tiny_model, tmp_path)
    again, before = load_model(tmp_path, "fp32"), load_model(tiny_model, "fp32")
    assert all(map(torch.equal, again.parameters(), before.bfloat16().float().parameters()))


def test_experts_are_not_quantised(tmp_path):
    config = Qwen3MoeConfig(hidden_size=32, num_hidden_layers=1, vocab_size=64, num_experts=2)
    with pytest.raises(ConfigError, match=r"qwen3_moe has model\.layers\.0\.mlp\.experts"):
        export(SafetensorsExport, "int8").check(config, None)
    export(SafetensorsExport, "bf16").check(config, None)


def test_a_tokenizer_that_llama_cpp_lacks_is_found_before_any_training(tiny_model):
    config, tokenizer = load_model(tiny_model, "fp32").config, load_tokenizer(tiny_model)
    export(GgufExport, "f16").check(config, tokenizer)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(";")
    with pytest.raises(ConfigError, match=r"llama\.cpp would split text differently"):
        export(GgufExport, "f16").check(config, tokenizer)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(ConfigError, match="only byte-level BPE"):
        export(GgufExport, "f16").check(config, tokenizer)


def test_a_model_too_large_for_one_onnx_file_is_refused_before_it_is_converted(
    tiny_model, tmp_path, monkeypatch
):
    monkeypatch.setattr(onnx, "LARGEST_FILE", 4 * load_model(tiny_model, "fp32").num_parameters())
    with pytest.raises(ConfigError, match=r"the weights take 0\.0 GB as fp32; export it as int8"):
        written(OnnxExport, "fp32", tiny_model, tmp_path)
    assert not [*tmp_path.glob("*.onnx")]
