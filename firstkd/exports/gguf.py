"""GGUF, for llama.cpp and everything built on it.

llama.cpp's own package `gguf` names the tensors and writes the metadata. This module does what the
package leaves to llama.cpp's converter (convert_hf_to_gguf.py): the supported families, the order
of Llama's rotated dimensions and the vocabulary.
"""

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

from firstkd.data.tokenising import starting_ids
from firstkd.errors import ArtifactError, ConfigError
from firstkd.exports.base import Export, Exported, end_ids

ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""llama.cpp's name for each supported model_type."""
BLOCK = 32
"""Number of weights in a row that share a scale."""
FILE_TYPES = {"f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0"}
SPLITS = {
    '[{"type": "ByteLevel", "use_regex": true}]': "gpt-2",
    '[{"individual_digits": true, "type": "Digits"}, {"type": "ByteLevel", "use_regex": true}]': (
        "smollm"
    ),
}
"""llama.cpp's name for how a text is split before merging (`tokenizer.ggml.pre`)."""
PATTERNS = {
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| "
    "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+": "llama-bpe",
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| "
    "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+": "qwen2",
}
"""The same, for tokenizers that split by a pattern before the byte level."""


class GgufExport(Export):
    kind: Literal["gguf"]
    file_name: ClassVar[str] = "model.gguf"
    runtime: ClassVar[str] = "xllamacpp"

    weights: Literal["f16", "q8_0", "q4_0"]
    """q8_0, q4_0: 8 or 4 bits per weight, with a scale for every 32; norms stay float32. An MLP
    whose width is not a multiple of 32 gets units that do nothing, to fill its last block."""

    def check(self, config: Any, tokenizer: Any) -> None:
        from firstkd.models.masks import layer_kinds

        family = config.model_type
        if family not in ARCHITECTURES:
            known = ", ".join(sorted(ARCHITECTURES))
            raise ConfigError(f"gguf export supports {known}, not {family}; export it as onnx")
        rope = config.rope_parameters["rope_type"]
        if layer_kinds(config) != {"full_attention"} or rope != "default":
            raise ConfigError(
                f"gguf export supports {family} only with full attention and plain rotary "
                f"positions, not {', '.join(sorted(layer_kinds(config)))} and {rope}; export it "
                "as onnx"
            )
        _split(_described(tokenizer)["pre_tokenizer"])

    def write(self, exported: Exported, file: Path) -> None:
        from gguf import GGUFWriter, LlamaFileType

        config = exported.model.config
        self.check(config, exported.tokenizer)
        writer = GGUFWriter(file, ARCHITECTURES[config.model_type])
        writer.add_type("model")
        writer.add_license(self.license)
        writer.add_file_type(LlamaFileType[FILE_TYPES[self.weights]])
        writer.add_quantization_version(2)
        writer.add_string("firstkd.calibration", exported.facts)
        idle = 0 if self.weights == "f16" else -config.intermediate_size % BLOCK
        _add_shape(writer, config, config.intermediate_size + idle)
        _add_vocabulary(writer, exported.model, exported.tokenizer)
        _add_tensors(writer, exported.model, self.weights, idle)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _add_shape(writer: Any, config: Any, intermediate_size: int) -> None:
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_vocabulary(writer: Any, model: Any, tokenizer: Any) -> None:
    from gguf import TokenType

    described = _described(tokenizer)
    bpe, size = described["model"], model.config.vocab_size
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [TokenType.UNUSED] * size
    for token, i in tokenizer.get_vocab().items():
        tokens[i], types[i] = token, TokenType.NORMAL
    for i, token in tokenizer.added_tokens_decoder.items():
        types[i] = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_split(described["pre_tokenizer"]))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = [m if isinstance(m, str) else " ".join(m) for m in bpe["merges"]]
    writer.add_token_merges(merges)
    first, *others = end_ids(model, tokenizer)
    writer.add_eos_token_id(first)
    if others:  # llama.cpp has room for two end tokens: of a text and of a turn
        writer.add_eot_token_id(others[0])
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(bool(starting_ids(tokenizer)))
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.get_chat_template())


def _described(tokenizer: Any) -> Any:
    """Return the tokenizer as its JSON says; raises ConfigError unless it is byte-level BPE."""
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    bpe = described["model"]
    if bpe["type"] != "BPE" or bpe.get("byte_fallback") or described["normalizer"]:
        raise ConfigError("gguf export supports only byte-level BPE tokenizers; export it as onnx")
    return described


def _split(pre_tokenizer: Any) -> str:
    """Return llama.cpp's name for how the tokenizer splits a text before merging.

    Raises ConfigError if it has none.
    """
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    if steps[0]["type"] == "Split" and steps[-1]["type"] == "ByteLevel":
        found = PATTERNS.get(steps[0]["pattern"].get("Regex"))
    else:
        kept = ("type", "use_regex", "individual_digits")
        shapes = [{key: step[key] for key in kept if key in step} for step in steps]
        found = SPLITS.get(json.dumps(shapes, sort_keys=True))
    if found is None:
        raise ConfigError(
            "llama.cpp would split text differently from this tokenizer, or firstkd does not know "
            "how it would split it; export it as onnx"
        )
    return found


def _add_tensors(writer: Any, model: Any, weights: str, idle: int) -> None:
    import numpy as np
    from gguf import GGMLQuantizationType, get_tensor_name_map
    from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES
    from gguf.quants import QuantError, quantize

    config = model.config
    of_name = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}
    names = get_tensor_name_map(
        MODEL_ARCH(of_name[ARCHITECTURES[config.model_type]]), config.num_hidden_layers
    )
    tied = config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        place = names.get_name(name, (".weight", ".bias"))
        if place is None:
            raise ArtifactError(f"gguf has no place for {name}; export it as onnx")
        values = _laid_out(name, tensor.float().numpy(), config, idle)
        kind = GGMLQuantizationType[weights.upper()]
        if values.ndim < 2:  # norms and biases are small, but matter
            kind = GGMLQuantizationType.F32
        try:
            packed = quantize(np.ascontiguousarray(values), kind)
        except QuantError as error:
            raise ConfigError(
                f"{name} has rows of {values.shape[-1]} values, not a multiple of {BLOCK}; "
                "export it as f16"
            ) from error
        writer.add_tensor(place, packed, raw_dtype=kind)


def _laid_out(name: str, values: Any, config: Any, idle: int) -> Any:
    """Return a weight in llama.cpp's layout, with `idle` extra MLP units.

    Their weights are 0, and so are their activations: they change nothing.
    """
    import numpy as np

    if config.model_type == "llama" and ".q_proj." in name:
        return _rotated(values, config.num_attention_heads)
    if config.model_type == "llama" and ".k_proj." in name:
        return _rotated(values, config.num_key_value_heads)
    if ".gate_proj." in name or ".up_proj." in name:
        return np.pad(values, [(0, idle), *[(0, 0)] * (values.ndim - 1)])
    if ".down_proj.weight" in name:
        return np.pad(values, [(0, 0), (0, idle)])
    return values


def _rotated(values: Any, heads: int) -> Any:
    """Interleave the rotated halves of each head in pairs, the order in which llama.cpp rotates."""
    shape = values.shape
    halves = values.reshape(heads, 2, shape[0] // heads // 2, *shape[1:])
    return halves.swapaxes(1, 2).reshape(shape)
