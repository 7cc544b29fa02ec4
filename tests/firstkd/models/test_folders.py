import pytest
import torch

from firstkd.data.prompts import Question
from firstkd.errors import ArtifactError
from firstkd.files import sha256_of
from firstkd.models.folders import load_model, load_tokenizer, save_model
from firstkd.models.pruning import block_influence, keep_layers, most_influential
from tests.tiny import write_tiny_model

QUESTIONS = [Question(str(i), [4 + i, 9, 12], [[20 + i], [30, 31]], 0) for i in range(5)]


def test_a_saved_model_is_the_same_bytes_again(tiny_model, tmp_path):
    for name in ("first", "second"):
        save_model(load_model(tiny_model, "fp32"), load_tokenizer(tiny_model), tmp_path / name)
    assert sha256_of(tmp_path / "first") == sha256_of(tmp_path / "second")
    assert load_model(tmp_path / "first", "bf16").dtype == torch.bfloat16


def test_pickled_weights_are_not_loaded(tiny_model, tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    (tmp_path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    with pytest.raises(ArtifactError, match=r"holds no \*\.safetensors weights"):
        load_model(tmp_path, "fp32")


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
