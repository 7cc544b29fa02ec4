"""GGUF files become safetensors once, so that everything after it knows one kind of model."""

from pathlib import Path

from firstkd.errors import SourceError


def convert_gguf(file: Path, folder: Path) -> None:
    """Write model and tokenizer of a GGUF file to `folder` as bfloat16 safetensors.

    Takes about half a minute for 135 M parameters, most of it imports and the tokenizer. Raises
    SourceError if the file is cut off, something else, or of a kind that cannot be converted.
    """
    check_gguf(file)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    from firstkd.models.folders import save_model

    # Without dequantize the weights stay packed: nothing could be trained or saved.
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
    """Raise SourceError unless the file is GGUF from its head to its last tensor."""
    from gguf import GGUFReader

    try:
        GGUFReader(file)
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise SourceError(
            f"{file.name} is not a whole GGUF file ({error}); fetch it again"
        ) from error
