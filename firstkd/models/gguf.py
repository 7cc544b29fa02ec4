"""GGUF files become safetensors once, so that everything after it knows one kind of model."""

from pathlib import Path


def convert_gguf(file: Path, folder: Path) -> None:
    """Write model and tokenizer of a GGUF file to `folder` as bfloat16 safetensors.

    Takes about half a minute for 135 M parameters, most of it imports and the tokenizer.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    # Without dequantize the weights stay packed: nothing could be trained or saved.
    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    for written in folder.iterdir():
        written.chmod(0o644)  # transformers makes the weights private
