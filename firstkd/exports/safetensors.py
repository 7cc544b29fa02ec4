"""Safetensors for vLLM, and for anything else that reads a Hugging Face folder.

In int8, the format is `int-quantized` of compressed-tensors: a matrix W [out, in] is stored as the
integers nearest to W / s, where s [out, 1] is each row's largest absolute value / 127 (one scale
per channel), and `config.json` says so. Activations are quantised dynamically, per token.
"""

from pathlib import Path
from typing import Any, ClassVar, Literal

from firstkd.errors import ConfigError
from firstkd.exports.base import Export, Exported
from firstkd.files import read_json, write_json

LARGEST = 127
EIGHT_BITS = {"num_bits": 8, "type": "int", "symmetric": True}


class SafetensorsExport(Export):
    kind: Literal["safetensors"]
    file_name: ClassVar[str] = "model.safetensors"
    runtime: ClassVar[str] = "vllm"
    beside: ClassVar[tuple[str, ...]] = ("tokenizer.json", "config.json")

    weights: Literal["bf16", "int8"]
    """int8: only the matrices in the layers; embeddings, head and norms stay bfloat16."""

    def check(self, config: Any, tokenizer: Any) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        if self.weights == "int8":
            with torch.device("meta"):
                _quantised_names(AutoModelForCausalLM.from_config(config))

    def write(self, exported: Exported, file: Path) -> None:
        """Also record the format of the weights in the `config.json` beside the file.

        Raises ConfigError for int8 if the layers multiply by anything but linear maps.
        """
        import torch
        from safetensors.torch import save_file

        names = _quantised_names(exported.model) if self.weights == "int8" else set()
        tensors = {}
        for name, tensor in exported.model.state_dict().items():
            if name == "lm_head.weight" and exported.model.config.tie_word_embeddings:
                continue
            if name in names:
                scales = tensor.abs().amax(-1, keepdim=True).clamp_min(1e-12) / LARGEST
                tensors[f"{name}_scale"] = scales
                tensors[name] = (tensor / scales).round().to(torch.int8)
            else:
                tensors[name] = tensor.to(torch.bfloat16)
        save_file(tensors, file, metadata={"format": "pt", "firstkd": exported.facts})
        config = read_json(file.parent / "config.json")
        config["dtype"] = "bfloat16"
        if names:
            config["quantization_config"] = _described()
        write_json(file.parent / "config.json", config)


def _described() -> dict[str, Any]:
    weights = {**EIGHT_BITS, "strategy": "channel", "dynamic": False}
    activations = {**EIGHT_BITS, "strategy": "token", "dynamic": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def _quantised_names(model: Any) -> set[str]:
    """Return the names of the linear maps' weights, except the head's.

    Raises ConfigError if there are other matrices, e.g. those of experts.
    """
    from torch import nn

    named = dict(model.named_modules())
    linear = {name for name, module in named.items() if isinstance(module, nn.Linear)}
    known = linear | {name for name, module in named.items() if isinstance(module, nn.Embedding)}
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and name.rpartition(".")[0] not in known:
            raise ConfigError(
                f"int8 export supports only linear layers, but {model.config.model_type} has "
                f"{name}; export it as bf16"
            )
    return {f"{name}.weight" for name in linear - {"lm_head"}}
