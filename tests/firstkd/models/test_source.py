"""A model folder is checked when it is fetched, not in the middle of the first training."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from firstkd.data.settings import Source
from firstkd.errors import SourceError
from firstkd.files import sha256_of
from firstkd.models.source import fetch_model
from tests.firstkd.models.test_gguf import write_gguf

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 538090408\n"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.fixture
def model(tmp_path: Path, tiny_model: Path) -> Path:
    shutil.copytree(tiny_model, tmp_path / "sources/model")
    return tmp_path / "sources/model"


@pytest.fixture
def sharded(model: Path) -> Path:
    tensors = load_file(model / WEIGHTS)
    names = sorted(tensors)
    places = {name: SHARDS[i >= len(names) // 2] for i, name in enumerate(names)}
    for shard in SHARDS:
        save_file({n: tensors[n] for n in names if places[n] == shard}, model / shard)
    (model / INDEX).write_text(json.dumps({"weight_map": places}))
    (model / WEIGHTS).unlink()
    return model


def fetch(model: Path) -> Path:
    project = model.parents[1]
    source = Source(source=f"path:sources/{model.name}")
    fetch_model(source, project / "out/base", project)
    return project / "out/base"


def test_whole_models_arrive(model: Path) -> None:
    assert sha256_of(fetch(model)) == sha256_of(model)


def test_whole_models_in_shards_arrive(sharded: Path) -> None:
    assert sha256_of(fetch(sharded)) == sha256_of(sharded)


@pytest.mark.parametrize(
    ("file", "damage", "problem"),
    [
        (WEIGHTS, lambda _: POINTER, r"model\.safetensors is a Git LFS pointer.*`git lfs pull`"),
        (WEIGHTS, lambda b: b[:-100], r"model\.safetensors is not a complete safetensors file"),
        (WEIGHTS, lambda b: b[:40], r"model\.safetensors is not a complete safetensors file"),
        (WEIGHTS, lambda _: b"<html>404</html>", r"is not a complete safetensors file"),
        (WEIGHTS, lambda _: b"", r"is not a complete safetensors file"),
        ("config.json", lambda _: POINTER, r"config\.json is a Git LFS pointer"),
        ("config.json", lambda b: b[:-30], r"config\.json is not JSON"),
        ("config.json", lambda _: b"{}", r"config\.json has no model_type"),
        ("tokenizer.json", lambda b: b[:-30], r"tokenizer\.json is not a tokenizer"),
        ("tokenizer.json", lambda _: b"{}", r"tokenizer\.json is not a tokenizer"),
    ],
)
def test_a_damaged_file_is_named(
    model: Path, file: str, damage: Callable[[bytes], bytes], problem: str
) -> None:
    (model / file).write_bytes(damage((model / file).read_bytes()))
    with pytest.raises(SourceError, match=f"^path:sources/model: .*{problem}"):
        fetch(model)


@pytest.mark.parametrize(
    ("missing", "problem"),
    [
        (SHARDS[:1], f"lacks {SHARDS[0]}, which {INDEX} names"),
        (SHARDS[1:], f"lacks {SHARDS[1]}, which {INDEX} names"),
        (SHARDS, "has no weights in safetensors"),
    ],
)
def test_missing_shards_are_named(sharded: Path, missing: list[str], problem: str) -> None:
    for shard in missing:
        (sharded / shard).unlink()
    with pytest.raises(SourceError, match=f"^path:sources/model {problem}"):
        fetch(sharded)


def test_shards_without_their_index_are_refused(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    with pytest.raises(SourceError, match=f"neither {WEIGHTS} nor {INDEX}, only {SHARDS[0]}"):
        fetch(sharded)


def test_a_shard_of_another_model_is_refused(sharded: Path) -> None:
    shutil.copy(sharded / SHARDS[0], sharded / SHARDS[1])
    with pytest.raises(SourceError, match=f"{SHARDS[1]} lacks model"):
        fetch(sharded)


def test_a_pointer_in_the_place_of_a_shard_is_named(sharded: Path) -> None:
    (sharded / SHARDS[0]).write_bytes(POINTER)
    with pytest.raises(SourceError, match=f"{SHARDS[0]} is a Git LFS pointer"):
        fetch(sharded)


def test_an_adapter_alone_is_no_model(model: Path) -> None:
    (model / WEIGHTS).rename(model / "adapter_model.safetensors")
    with pytest.raises(SourceError, match="merge the adapter into its base model"):
        fetch(model)


def write_sentencepiece(file: Path) -> None:
    from transformers.utils import sentencepiece_model_pb2_new as pb

    model = pb.ModelProto()
    for text, kind in [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("▁", 1), ("a", 1), ("▁a", 1)]:
        piece = model.pieces.add()
        piece.piece, piece.type = text, kind
    model.trainer_spec.model_type = 2
    file.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("kept", ["tokenizer.model", "spiece.model", None])
def test_a_tokenizer_that_needs_conversion_is_one_clear_line(model: Path, kept: str | None) -> None:
    """Without any vocabulary, transformers would silently make a tokenizer of three tokens."""
    (model / "tokenizer.json").unlink()
    if kept:
        write_sentencepiece(model / kept)
    with pytest.raises(SourceError, match=r"has no tokenizer\.json .*save_pretrained") as caught:
        fetch(model)
    assert len(str(caught.value).splitlines()) == 1


def test_a_tokenizer_of_vocabulary_and_merges_needs_no_conversion(model: Path) -> None:
    whole = json.loads((model / "tokenizer.json").read_text())["model"]
    (model / "tokenizer.json").unlink()
    (model / "vocab.json").write_text(json.dumps(whole["vocab"]))
    (model / "merges.txt").write_text("\n".join(map(" ".join, whole["merges"])))
    (model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    fetch(model)
    (model / "vocab.json").write_text("[")
    with pytest.raises(SourceError, match=r"no tokenizer can be built from vocab\.json"):
        fetch(model)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda b: b[:-500], "is not a complete GGUF file"),
        (lambda b: b[:2000], "is not a complete GGUF file"),
        (lambda _: b"<html>404</html>", "is not a complete GGUF file"),
        (lambda _: POINTER, "is a Git LFS pointer"),
        (lambda b: b.replace(b"llama", b"lluma"), "cannot be converted .*lluma"),
    ],
    ids=["end missing", "only its head", "something else", "pointer", "unknown architecture"],
)
def test_a_gguf_file_that_cannot_be_converted_is_named(
    tmp_path: Path, tiny_model: Path, damage: Callable[[bytes], bytes], problem: str
) -> None:
    (tmp_path / "sources").mkdir()
    write_gguf(tiny_model, tmp_path / "sources/tiny.GGUF")
    file = tmp_path / "sources/tiny.GGUF"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(SourceError, match=rf"tiny\.GGUF {problem}"):
        fetch(file)
