"""What training rounds weights to is what the file holds, by llama.cpp's own quantisation."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize, quantize

from firstkd.exports.base import Exported
from firstkd.exports.gguf import GgufExport
from firstkd.models.folders import load_model, load_tokenizer, save_model
from firstkd.models.init.base import Given
from firstkd.models.init.quantise import QuantiseInit
from firstkd.models.quantised import keep_rounded, quantised, round_matrices, to_save
from tests.firstkd.train.test_checkpoints import same, stopped_in_step
from tests.firstkd.train.trainings import trained

KINDS = ("q8_0", "q4_0")


def as_a_file_has_it(weight, kind):
    """By the package of llama.cpp."""
    width = weight.shape[-1]
    values = np.pad(weight.bfloat16().float().numpy(), [(0, 0), (0, -width % 32)])
    of_kind = GGMLQuantizationType[kind.upper()]
    return torch.from_numpy(dequantize(quantize(values, of_kind), of_kind)[:, :width])


def matrix(size, width=96):
    """Blocks of one size, some of zeros, and some whose largest weight comes with both signs."""
    weight = size * torch.randn(64, width, generator=torch.Generator().manual_seed(0))
    weight[0] = 0
    weight[1:20, ::3], weight[1:20, 1::3] = -size, size
    weight[20:30, ::3], weight[20:30, 1::3] = size, -size
    return weight


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e-6, 1e-4, 3e-3, 0.05, 1.0, 40.0])
@pytest.mark.parametrize("width", [96, 55])
def test_weights_are_rounded_as_in_a_file_and_saved_ones_to_the_same(kind, size, width):
    weight = matrix(size, width)
    found = quantised(weight, kind)
    assert torch.equal(found, as_a_file_has_it(weight, kind))
    assert torch.equal(as_a_file_has_it(to_save(weight, kind), kind), found)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_rounded_weights_has_their_gradient(tiny_model, kind):
    """As a model that has them has it, with a gradient for what they were rounded from."""
    model, ids = load_model(tiny_model, "fp32"), torch.arange(3, 40)[None]
    plain = copy.deepcopy(model)
    for weight in plain.parameters():
        if weight.dim() > 1:
            weight.data = quantised(weight.data, kind)
    round_matrices(model, kind)
    for each in (model, plain):
        each(ids, labels=ids).loss.backward()
    pairs = list(zip(model.parameters(), plain.parameters(), strict=True))
    assert len(pairs) > 15 and all(weight.grad.abs().sum() > 0 for weight, _ in pairs)
    for weight, expected in pairs:
        torch.testing.assert_close(weight.grad, expected.grad)


@pytest.mark.parametrize("changes", [{"zero_stage": 0, "precision": "bf16"}, {"zero_stage": 2}])
def test_training_stopped_and_resumed_is_the_same_and_is_what_is_exported(
    tiny_model, tmp_path, changes
):
    changes["begin"] = partial(round_matrices, weights="q4_0")
    undisturbed = trained(tiny_model, tmp_path, **changes)
    checkpoints = tmp_path / "checkpoints"
    stopped_in_step(7, tiny_model, tmp_path, checkpoints, **changes)
    resumed = trained(tiny_model, tmp_path, checkpoints, **changes)
    same(undisturbed, resumed)
    model, curve = resumed
    assert curve[-1]["loss"] < 0.7 * curve[0]["loss"]

    used = {name.removesuffix(".weight"): getattr(part, "weight", None)
            for name, part in model.named_modules()}  # fmt: skip
    keep_rounded(model, "q4_0")
    save_model(model, load_tokenizer(tiny_model), tmp_path / "saved")
    saved = load_model(tmp_path / "saved", "fp32")
    export = GgufExport(kind="gguf", of="first", weights="q4_0", license="MIT")
    export.write(Exported(saved, load_tokenizer(tiny_model), "{}"), tmp_path / "model.gguf")
    held = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "model.gguf").tensors}
    for theirs, ours in (
        ("token_embd", "model.embed_tokens"),
        ("blk.1.ffn_down", "model.layers.1.mlp.down_proj"),
        ("blk.0.attn_v", "model.layers.0.self_attn.v_proj"),
    ):
        tensor = held[f"{theirs}.weight"]
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type))
        assert torch.equal(values.to(used[ours].dtype), used[ours])  # computed in bfloat16 or not


def test_quantisation_after_training_is_the_start_without_learning(tiny_model, tmp_path):
    given = Given(tmp_path, {"first": tiny_model}, (), None)
    QuantiseInit(kind="quantise", of="first", weights="q4_0").make(tmp_path, given)
    before, after = (load_model(folder, "fp32") for folder in (tiny_model, tmp_path))
    expected = quantised(before.model.layers[0].mlp.up_proj.weight, "q4_0").bfloat16().float()
    assert torch.equal(after.model.layers[0].mlp.up_proj.weight, expected)
    assert torch.equal(after.lm_head.weight, after.model.embed_tokens.weight)
