"""Causal language models in Hugging Face folders: load and save."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from firstkd.errors import ArtifactError
from firstkd.files import read_json
from firstkd.section import Precision

if not torch.cuda.is_available():
    # transformers imports DeepSpeed, which otherwise searches for other devices and logs it
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def precision_here(precision: Precision) -> str:
    """Return `bf16` or `fp32`; for `auto`, the faster of the two on this machine.

    On processors without instructions for it, bfloat16 takes five times as long as float32.
    """
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16"
    can = torch.cpu.get_capabilities()
    return "bf16" if any(can.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16")) else "fp32"


def load_model(folder: Path, precision: Precision = "auto", **placed: Any) -> PreTrainedModel:
    """Load safetensors weights, never pickles or the folder's own code, onto this process's device.

    `placed`: keyword arguments of transformers' `from_pretrained` that put them elsewhere.
    Raises ArtifactError if the folder contains no such model, or if the weights in the files and
    in the model do not match one to one: transformers would fill in random ones.
    """
    if not any(folder.glob("*.safetensors")):
        raise ArtifactError(f"{folder} holds no *.safetensors weights; run the stage that makes it")
    config = read_config(folder)
    with _named(folder, "config.json"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=DTYPES[precision_here(precision)],
            attn_implementation=_attention(config),
            ignore_mismatched_sizes=True,  # listed below
            output_loading_info=True,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            **placed,
        )
    model, info = loaded
    _check_complete(folder, info)
    ids = tokenizer_ids(folder)
    model.tokenizer_ids = ids or number_of_rows(model.get_input_embeddings().weight)
    here: PreTrainedModel = model if placed else model.to(device())
    return here


def read_config(folder: Path) -> Any:
    """Raises ArtifactError unless the model is a text-only decoder that transformers knows."""
    family = read_json(folder / "config.json").get("model_type")
    if family not in CONFIG_MAPPING:
        kind = f"unknown to transformers {transformers.__version__}"
    elif (config := _config(folder)).is_encoder_decoder:
        kind = "an encoder-decoder"
    elif config.get_text_config() is not config:
        kind = "a multimodal model"
    elif family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        kind = "not a causal language model"
    else:
        return config
    raise ArtifactError(f"{folder}: {family} is {kind}; choose a text-only causal language model")


def _config(folder: Path) -> Any:
    with _named(folder, "config.json"):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


@contextmanager
def _named(folder: Path, file: str) -> Iterator[None]:
    """Turn whatever transformers raises for a setting that it cannot use into an ArtifactError."""
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is missing; run the stage that makes it")
    try:
        yield
    except (ImportError, KeyError, TypeError, ValueError, OSError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise ArtifactError(
            f"{folder}: transformers {transformers.__version__} cannot load it as {file} describes "
            f"it ({type(error).__name__}: {reason}); correct that file, or choose an unquantised "
            "model that needs no custom code"
        ) from error


def number_of_rows(weight: Any) -> int:
    """Return an embedding's number of rows, even if ZeRO 3 has sharded it and it looks empty."""
    return int(getattr(weight, "ds_shape", weight.shape)[0])


def number_of_parameters(model: Any) -> int:
    """Count a model's weights, even if ZeRO 3 has sharded them.

    A head that is tied to the embedding counts once, even if it is a copy.
    """
    weights = dict.fromkeys(model.parameters())
    if model.config.tie_word_embeddings:
        del weights[model.get_output_embeddings().weight]
        weights[model.get_input_embeddings().weight] = None
    return sum(getattr(weight, "ds_numel", weight.numel()) for weight in weights)


def device_of(model: Any) -> torch.device:
    """Return the device for a model's input: that of its head, which is always whole."""
    found: torch.device = model.get_output_embeddings().weight.device
    return found


def vocabulary_size(model: Any) -> int:
    """Return how many rows of the model's head are ids of its tokenizer; the rest are padding."""
    rows = number_of_rows(model.get_output_embeddings().weight)
    return min(rows, getattr(model, "tokenizer_ids", rows))


def tokenizer_ids(folder: Path) -> int | None:
    """Return the largest id of the folder's tokenizer plus 1; None if it has no tokenizer."""
    if not (folder / "tokenizer_config.json").exists():
        return None
    largest: int = max(load_tokenizer(folder).get_vocab().values())
    return largest + 1


def _attention(config: Any) -> str | None:
    """Return the attention implementation; None lets transformers choose the fastest exact one.

    With short sequences on a CPU, eager trains 10 % faster than the fused kernel, which also
    ignores a soft cap on the attention scores.
    """
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    return None if torch.cuda.is_available() and not capped else "eager"


def _check_complete(folder: Path, info: dict[str, Any]) -> None:
    for found, what in (
        ("missing_keys", "the weights lack"),
        ("unexpected_keys", "the model has no place for"),
        ("mismatched_keys", "the shape differs from config.json's for"),
    ):
        if names := sorted(str(n[0] if isinstance(n, tuple) else n) for n in info[found]):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ArtifactError(
                f"{folder}: {what} {', '.join(names[:3])}{more}; config.json and weights belong to "
                "different models, or the files are incomplete: fetch them again"
            )


def load_tokenizer(folder: Path) -> Any:
    """Raises ArtifactError if the folder's files do not describe a tokenizer."""
    with _named(folder, "tokenizer_config.json"):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a folder that plain transformers can load: bfloat16 safetensors, config, tokenizer."""
    # a model's origin is lineage, not content: the same weights give the same bytes
    model.config._name_or_path = ""
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def device() -> torch.device:
    """Return this process's GPU, by torchrun's numbering, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
