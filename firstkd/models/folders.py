"""Causal language models in Hugging Face folders: load, prune, save."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from firstkd.errors import ArtifactError

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def load_model(folder: Path, precision: str) -> PreTrainedModel:
    """Load safetensors weights onto the device at hand; never pickles or the folder's own code.

    Raises ArtifactError when the folder holds no such model.
    """
    if not any(folder.glob("*.safetensors")):
        raise ArtifactError(f"{folder} holds no *.safetensors weights; run the stage that makes it")
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=DTYPES[precision],
        # with short sequences on CPU, eager trains 10 % faster than the fused kernel
        attn_implementation="sdpa" if torch.cuda.is_available() else "eager",
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
    )
    moved: PreTrainedModel = model.to(device())
    return moved


def load_tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a folder that transformers alone can load: bfloat16 safetensors, config, tokenizer."""
    # where the weights came from is lineage, not content: the same weights are the same bytes
    model.config._name_or_path = ""
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def device() -> torch.device:
    """The GPU of this process, as torchrun numbers them, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def keep_layers(model: Any, layers: list[int]) -> None:
    """Remove all decoder layers but these, in place (depth pruning)."""
    kept: Any = nn.ModuleList(model.base_model.layers[i] for i in layers)
    for position, layer in enumerate(kept):
        layer.self_attn.layer_idx = position
    model.base_model.layers = kept
    if getattr(model.config, "layer_types", None):  # the kind of attention of each layer
        model.config.layer_types = [model.config.layer_types[i] for i in layers]
    model.config.num_hidden_layers = len(kept)
