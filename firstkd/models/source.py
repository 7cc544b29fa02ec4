"""Fetch a model from its source, and check it before anything depends on it.

The checks take milliseconds even for a large model: they read headers, not weights.
"""

import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

from firstkd.data.settings import Source
from firstkd.data.sources import fetch_source, file_name
from firstkd.errors import SourceError
from firstkd.models.gguf import convert_gguf

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def fetch_model(source: Source, folder: Path, project: Path) -> None:
    """Fetch a model into `folder`, converted if it is one GGUF file.

    Raises SourceError, naming the source, if it cannot be fetched or is not a complete model.
    """
    name = file_name(source.source)
    if name.lower().endswith(".gguf"):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".gguf.", dir=folder.parent) as scratch:
            file = Path(scratch) / name
            fetch_source(source.source, source.sha256, file, project)
            convert_gguf(file, folder)
    else:
        fetch_source(source.source, source.sha256, folder, project)
    check_model(folder, source.source)


def check_model(folder: Path, source: str) -> None:
    """Raise SourceError unless the folder has complete weights, a config and a tokenizer."""
    check_weights(folder, source)
    config = _json_object(folder / "config.json", source)
    if "model_type" not in config:
        raise SourceError(
            f"{source}: config.json has no model_type, so it does not describe a model"
        )
    check_tokenizer(folder, source)


def check_weights(folder: Path, source: str) -> None:
    """Raise SourceError unless every tensor is in the safetensors file that should contain it."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not files:
        raise SourceError(
            f"{source} has no weights in safetensors format; expected a folder with *.safetensors, "
            "or one .gguf file. Pickled weights (.bin, .pt) are not read, because loading them "
            "runs the code inside: save the model again with save_pretrained."
        )
    tensors = {file.name: _tensors(file, source) for file in files}
    if (folder / WEIGHTS).exists():
        return
    if not (folder / INDEX).exists():
        hint = "merge the adapter into its base model" if _is_adapter(files) else "complete it"
        raise SourceError(
            f"{source} has neither {WEIGHTS} nor {INDEX}, only {', '.join(tensors)}; {hint}"
        )
    places = _json_object(folder / INDEX, source).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise SourceError(f"{source}: {INDEX} has no weight_map; fetch it again")
    if missing := sorted({str(file) for file in places.values()} - tensors.keys()):
        raise SourceError(
            f"{source} lacks {', '.join(missing)}, which {INDEX} names; fetch the missing shards"
        )
    for tensor, file in places.items():
        if tensor not in tensors[file]:
            raise SourceError(
                f"{source}: {file} lacks {tensor}, which {INDEX} lists there; the shards belong to "
                "different models: fetch them again"
            )


def check_tokenizer(folder: Path, source: str) -> None:
    """Raise SourceError unless the tokenizer can be loaded with the installed packages."""
    fast = folder / "tokenizer.json"
    if fast.exists():
        from tokenizers import Tokenizer

        try:
            Tokenizer.from_file(str(fast))
        except Exception as error:  # the class that tokenizers raises
            raise SourceError(
                f"{source}: tokenizer.json is not a tokenizer ({error}); fetch it again"
            ) from error
        return
    convertible = sorted(folder.glob("vocab.*"))
    if not convertible and importlib.util.find_spec("sentencepiece"):
        convertible = sorted(folder.glob("*.model"))
    if not convertible:
        found = ", ".join(file.name for file in sorted(folder.glob("*token*"))) or "none"
        raise SourceError(
            f"{source} has no tokenizer.json (tokenizer files: {found}). If there is a "
            "tokenizer.model, convert it once, with the package sentencepiece installed: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    from transformers import AutoTokenizer

    try:
        AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a family's own class raises
        raise SourceError(
            f"{source}: no tokenizer can be built from {convertible[0].name} ({error}); add the "
            "tokenizer.json that save_pretrained writes"
        ) from error


def _tensors(file: Path, source: str) -> set[str]:
    """Return the tensors named in a file's header; safetensors checks it against the file's size.

    Raises SourceError if the file is something else, or truncated.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            return set(opened.keys())
    except (SafetensorError, OSError) as error:
        raise SourceError(
            f"{source}: {file.name} is not a complete safetensors file ({error}); fetch it again"
        ) from error


def _is_adapter(files: list[Path]) -> bool:
    return any(file.name.startswith("adapter") for file in files)


def _json_object(file: Path, source: str) -> dict[str, Any]:
    if not file.exists():
        raise SourceError(f"{source} has no {file.name}; it is incomplete")
    try:
        value = json.loads(file.read_bytes())
    except ValueError as error:
        raise SourceError(f"{source}: {file.name} is not JSON ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise SourceError(f"{source}: {file.name} is not a JSON object; fetch it again")
    return value
