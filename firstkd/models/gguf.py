"""Convert GGUF files to safetensors once, so that everything downstream handles one format."""

from pathlib import Path
from typing import Any

from firstkd.errors import SourceError
from firstkd.words import counted

LOST = ("rope_freqs", "rope_factors")
"""Tensors that scale rotary positions, which transformers would ignore."""


def convert_gguf(file: Path, folder: Path) -> None:
    """Write a GGUF file's model, as bfloat16 safetensors, and its tokenizer to `folder`.

    Takes about half a minute for 135 M parameters, most of it for imports and the tokenizer. Raises
    SourceError if the file is truncated, not GGUF, or of a kind that cannot be converted.
    """
    theta = check_gguf(file)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    from firstkd.models.folders import save_model

    # Without dequantize the weights stay packed and can be neither trained nor saved.
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise SourceError(
            f"{file.name} cannot be converted ({error}); use the model's safetensors instead"
        ) from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise SourceError(
            f"{file.name} lacks {counted(len(missing), 'weight')}, the first {missing[0]}; use the "
            "model's safetensors instead"
        )
    rope = getattr(model.config, "rope_parameters", None) or {}
    if theta is not None and rope.get("rope_theta", theta) != theta:
        raise _unlike(file, f"its rotary base {theta:g} would become {rope['rope_theta']:g}")
    save_model(model, tokenizer, folder)
    for written in folder.iterdir():
        written.chmod(0o644)  # transformers makes the weights private


def check_gguf(file: Path) -> float | None:
    """Return the base of its rotary positions, if it names one.

    Raises SourceError unless the file is GGUF from its header to its last tensor, and whole, and
    transformers reads all of it.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise SourceError(
            f"{file.name} is not a complete GGUF file ({error}); fetch it again"
        ) from error
    found: dict[str, Any] = {
        name.partition(".")[2]: field.contents()
        for name, field in reader.fields.items()
        if name.endswith(("split.count", ".rope.freq_base")) or ".rope.scaling." in name
    }
    if found.get("count", 1) > 1:
        raise _unlike(file, f"it is one of {found['count']} parts")
    if found.get("rope.scaling.type", "none") != "none" or any(
        tensor.name.startswith(LOST) for tensor in reader.tensors
    ):
        raise _unlike(file, "the scaling of its rotary positions would be lost")
    base: float | None = found.get("rope.freq_base")
    return base


def _unlike(file: Path, why: str) -> SourceError:
    return SourceError(
        f"{file.name} cannot be converted faithfully: {why}; use the model's safetensors instead"
    )
