"""A GGUF file as llama.cpp's tools write them, made of the tiny model's weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from firstkd.errors import SourceError
from firstkd.files import sha256_of
from firstkd.models.gguf import convert_gguf

HF_TO_GGUF = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.layers": "blk",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
}


def rotary_pairs(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp interleaves the two halves that a rotary embedding turns."""
    rows = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, rows, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    model: Path,
    file: Path,
    without: str = "",
    change: Callable[[Any], None] = lambda _: None,
) -> None:
    """Leave out the tensors with `without` in their names; `change` the writer."""
    import gguf
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = tokenizer.get_vocab()
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.__getitem__))
    writer.add_token_types([3] * 3 + [1] * (len(vocabulary) - 3))
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    for name, weight in load_file(model / "model.safetensors").items():
        for ours, theirs in HF_TO_GGUF.items():
            name = name.replace(ours, theirs)
        if without and without in name:
            continue
        if "attn_q." in name or "attn_k." in name:
            heads = config.num_attention_heads if "_q." in name else config.num_key_value_heads
            weight = rotary_pairs(weight, heads)
        writer.add_tensor(name, weight.numpy())
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_becomes_the_same_model_in_safetensors(
    tmp_path: Path, tiny_model: Path
) -> None:
    from transformers import AutoTokenizer

    write_gguf(tiny_model, tmp_path / "tiny.gguf")
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "one")
    converted = load_file(tmp_path / "one/model.safetensors")
    for name, weight in load_file(tiny_model / "model.safetensors").items():
        assert torch.equal(converted[name], weight.bfloat16()), name
    text = [" in the sea", "Where does the red fox live?"]
    ids = [AutoTokenizer.from_pretrained(f)(text).input_ids for f in (tmp_path / "one", tiny_model)]
    assert ids[0] == ids[1]

    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "two")
    assert sha256_of(tmp_path / "one") == sha256_of(tmp_path / "two")
    for file in (tmp_path / "one").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file.name
        assert file.stat().st_mode & 0o777 == 0o644


def scale_positions(writer: Any) -> None:
    writer.add_string("llama.rope.scaling.type", "linear")
    writer.add_float32("llama.rope.scaling.factor", 4.0)


@pytest.mark.parametrize(
    ("without", "change", "words"),
    [
        (
            "blk.1.ffn_up",
            lambda _: None,
            "lacks 1 weight, the first model.layers.1.mlp.up_proj.weight",
        ),
        ("", lambda w: w.add_uint16("split.count", 2), "it is one of 2 parts"),
        ("", scale_positions, "the scaling of its rotary positions would be lost"),
        (
            "",
            lambda w: w.add_tensor("rope_freqs.weight", np.ones(4, np.float32)),
            "the scaling of its rotary positions would be lost",
        ),
    ],
)
def test_a_file_that_would_become_another_model_is_refused(
    tmp_path: Path, tiny_model: Path, without: str, change: Callable[[Any], None], words: str
) -> None:
    write_gguf(tiny_model, tmp_path / "tiny.gguf", without, change)
    with pytest.raises(SourceError, match=words):
        convert_gguf(tmp_path / "tiny.gguf", tmp_path / "one")
    assert not (tmp_path / "one").exists()
