import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from firstkd.data.packing import pack
from firstkd.data.prompts import Question
from firstkd.errors import ArtifactError
from firstkd.files import sha256_of
from firstkd.models.folders import (
    load_model,
    load_tokenizer,
    precision_here,
    save_model,
    vocabulary_size,
)
from firstkd.models.pruning import block_influence, keep_layers, most_influential
from firstkd.models.scoring import ResponseScorer, score_questions, score_tokens
from tests.tiny import write_tiny_model

QUESTIONS = [Question(str(i), [4 + i, 9, 12], [[20 + i], [30, 31]], 0) for i in range(5)]


def test_a_saved_model_is_the_same_bytes_again(tiny_model, tmp_path):
    for name in ("first", "second"):
        save_model(load_model(tiny_model, "fp32"), load_tokenizer(tiny_model), tmp_path / name)
    assert sha256_of(tmp_path / "first") == sha256_of(tmp_path / "second")
    assert load_model(tmp_path / "first", "bf16").dtype == torch.bfloat16


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"/none is missing; run the stage that makes it"):
        load_tokenizer(tmp_path / "none")


def test_pickled_weights_are_not_loaded(tiny_model, tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    (tmp_path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    with pytest.raises(ArtifactError, match=r"holds no \*\.safetensors weights"):
        load_model(tmp_path, "fp32")


@pytest.mark.parametrize(
    ("file", "setting", "reason"),
    [
        ("config.json", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "GPTQ"),
        ("config.json", {"quantization_config": {"quant_method": "awq", "bits": 4}}, "AWQ"),
        ("config.json", {"rope_scaling": {"type": "su", "factor": 2}}, "KeyError: 'su'"),
        ("config.json", {"hidden_size": "32"}, "expected int, got str"),
        ("config.json", {"num_attention_heads": 5}, "not a multiple"),
        ("config.json", {"tie_word_embeddings": False}, r"the weights lack lm_head\.weight"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["a.X", None]}}, "custom code"),
        ("special_tokens_map.json", None, "JSONDecodeError"),
    ],
)
def test_what_transformers_cannot_load_is_one_line_with_the_file(
    tiny_model, tmp_path, file, setting, reason
):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    path = folder / file
    if setting is None:
        path.write_text("{")
    else:
        own = {"tokenizer_class": "X"} if "auto_map" in setting else {}
        path.write_text(json.dumps({**json.loads(path.read_text()), **setting, **own}))
    with pytest.raises(ArtifactError, match=f"{re.escape(str(folder))}: .*{reason}"):
        load_model(folder, "fp32")


def test_a_tokenizer_with_more_ids_than_the_model_embeds_is_cut_to_those(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["<a>", "<b>"])
    tokenizer.save_pretrained(folder)
    model = load_model(folder, "fp32")
    assert vocabulary_size(model) == len(model.get_input_embeddings().weight) < len(tokenizer)


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deep")
    write_tiny_model(folder, layers=4)
    return folder


def test_kept_layers_are_the_originals_renumbered(deep_model):
    model = load_model(deep_model, "fp32")
    original = [layer.mlp.up_proj.weight.clone() for layer in model.base_model.layers]
    keep_layers(model, [0, 3])
    assert model.config.num_hidden_layers == 2
    assert [layer.self_attn.layer_idx for layer in model.base_model.layers] == [0, 1]
    assert torch.equal(model.base_model.layers[1].mlp.up_proj.weight, original[3])


def test_a_layer_that_does_nothing_has_no_influence(deep_model):
    model = load_model(deep_model, "fp32")
    model.base_model.layers[2].self_attn.o_proj.weight.data.zero_()
    model.base_model.layers[2].mlp.down_proj.weight.data.zero_()
    influence = block_influence(model, QUESTIONS, batch_size=2)
    assert float(influence[2]) == pytest.approx(0, abs=1e-6)
    assert most_influential(influence, 3) == [0, 1, 3]


def test_influence_does_not_depend_on_padding(deep_model):
    model = load_model(deep_model, "fp32")
    torch.testing.assert_close(
        block_influence(model, QUESTIONS, batch_size=5),
        block_influence(model, QUESTIONS, batch_size=1),
    )


def with_weights(source, folder, change):
    """A copy of the folder whose tensors have been through `change`."""
    shutil.copytree(source, folder)
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def without(name):
    return lambda weights: {n: t for n, t in weights.items() if name not in n}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without("layers.1.mlp.up_proj"),
            r"the weights lack model.layers.1.mlp.up_proj.weight; config",
        ),
        (
            lambda weights: {f"base_model.model.{n}": t for n, t in weights.items()},
            r"the weights lack .* and \d+ more; config",
        ),
        (
            lambda weights: {**weights, "model.layers.0.extra": torch.ones(2)},
            r"the model has no place for model.layers.0.extra; config",
        ),
        (
            lambda weights: {**weights, "model.norm.weight": torch.ones(31)},
            r"the shape differs from config.json's for model.norm.weight; config",
        ),
    ],
    ids=["missing", "renamed", "unexpected", "mismatched"],
)
def test_weights_that_are_not_the_models_are_refused(tiny_model, tmp_path, change, message):
    folder = with_weights(tiny_model, tmp_path / "changed", change)
    with pytest.raises(ArtifactError, match=message):
        load_model(folder, "fp32")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": "t5"},
            "t5 is an encoder-decoder; choose a text-only causal language model",
        ),
        ({"model_type": "gemma3"}, "gemma3 is a multimodal model; choose a text-only causal"),
        ({"model_type": "newest"}, r"newest is unknown to transformers \d"),
        ({"model_type": "vit"}, "vit is not a causal language model; choose"),
    ],
)
def test_what_is_no_decoder_of_text_is_refused_in_one_line(tiny_model, tmp_path, config, message):
    shutil.copy(tiny_model / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=message) as raised:
        load_model(tmp_path, "fp32")
    assert "\n" not in str(raised.value)


def test_a_head_padded_beyond_the_tokenizer_is_cut_everywhere(tiny_model, tmp_path):
    model = load_model(tiny_model, "fp32").eval()
    expected = score_questions(model, QUESTIONS, 5)
    tokens = score_tokens(model, QUESTIONS, 5)
    batch = pack(QUESTIONS, [0, 1, 2])
    logprobs = ResponseScorer(model)(batch).logprobs_M.detach()
    model.resize_token_embeddings(464, mean_resizing=False)
    weight = model.lm_head.weight.data
    weight[400:] = 50 * weight[:64]  # each of them would win every comparison
    model.save_pretrained(tmp_path)
    load_tokenizer(tiny_model).save_pretrained(tmp_path)
    padded = load_model(tmp_path, "fp32").eval()
    assert vocabulary_size(padded) == 400
    torch.testing.assert_close(score_questions(padded, QUESTIONS, 5), expected)
    found = score_tokens(padded, QUESTIONS, 5)
    torch.testing.assert_close(found.confidence_T, tokens.confidence_T)
    again = ResponseScorer(padded)(batch).logprobs_M
    torch.testing.assert_close(again, logprobs)
    again.sum().backward()
    assert padded.lm_head.weight.grad.shape == (464, 32)


@pytest.mark.parametrize(
    ("instructions", "expected"),
    [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx512_f": True}, "fp32")],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU decides first")
def test_the_precision_is_what_the_processor_is_fast_at(monkeypatch, instructions, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    assert precision_here("auto") == expected
    assert [precision_here(given) for given in ("bf16", "fp32")] == ["bf16", "fp32"]
