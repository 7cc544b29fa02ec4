"""Convert GGUF files to safetensors once, so that everything downstream handles one format."""

from pathlib import Path

from firstkd.errors import SourceError


def convert_gguf(file: Path, folder: Path) -> None:
    """Write a GGUF file's model, as bfloat16 safetensors, and its tokenizer to `folder`.

    Takes about half a minute for 135 M parameters, most of it for imports and the tokenizer. Raises
    SourceError if the file is truncated, not GGUF, or of a kind that cannot be converted.
    """
    check_gguf(file)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    from firstkd.models.folders import save_model

    # Without dequantize the weights stay packed and can be neither trained nor saved.
    try:
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise SourceError(
            f"{file.name} cannot be converted ({error}); use the model's safetensors instead"
        ) from error
    save_model(model, tokenizer, folder)
    for written in folder.iterdir():
        written.chmod(0o644)  # transformers makes the weights private


def check_gguf(file: Path) -> None:
    """Raise SourceError unless the file is GGUF from its header to its last tensor."""
    from gguf import GGUFReader

    try:
        GGUFReader(file)
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise SourceError(
            f"{file.name} is not a complete GGUF file ({error}); fetch it again"
        ) from error
