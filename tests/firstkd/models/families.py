"""Tiny random models of many families, as their authors configure them but smaller."""

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

VOCABULARY = 400
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SLIDING = {"sliding_window": 20}
MIXED = {**SLIDING, "layer_types": ["sliding_attention", "full_attention"] * 2}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma2": {**MIXED, "head_dim": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {**MIXED, "head_dim": 8, "query_pre_attn_scalar": 8},
    "mistral": SLIDING,
    "mixtral": {**SLIDING, "num_local_experts": 4, "num_experts_per_tok": 2},
    "phi3": SLIDING,
    "olmo2": {},
    "olmo3": MIXED,
    "smollm3": {"no_rope_layers": [1, 0, 1, 1], "use_sliding_window": False},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "block_multiple_of": 8},
    "qwen3_moe": {**EXPERTS, "num_experts": 4, "mlp_only_layers": [1], "head_dim": 8},
    "gpt_neox": {},
    "gpt2": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "granite": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {**MIXED, "logit_scale": 0.25},
    "gpt_oss": {**MIXED, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_next": {
        **EXPERTS,
        "num_experts": 4,
        "shared_expert_intermediate_size": 16,
        "head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    "mamba": {"state_size": 4},
    "bloom": {"n_head": 4, "n_layer": 4},
    "falcon": {"alibi": True, "new_decoder_architecture": False},
}

REFUSED: dict[str, dict[str, Any]] = {
    "modernbert-decoder": {"local_attention": 20},  # its head is more than one matrix
    "hyperclovax": {"logits_scaling": 4.0},  # multiplies where Granite divides
    "gpt_neo": {"window_size": 20, "attention_types": [[["global", "local"], 2]]},
}


def tiny_model(family: str, **changes: Any) -> Any:
    """A model in float32 whose logits differ visibly from token to token."""
    config = CONFIG_MAPPING[family](**{**COMMON, **(FAMILIES | REFUSED)[family], **changes})
    config._attn_implementation = "eager"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.ndim > 1:  # the initial 0.02 would leave attention without effect
                parameter.data.normal_(0, 0.3)
    return model.eval()
