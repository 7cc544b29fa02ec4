"""Files that are either complete or absent: atomic writes, and hashes of files and folders."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from firstkd.errors import ArtifactError


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on failure it is gone.

    Raises ArtifactError when the disk refuses the write (full, read-only).
    """
    _make_parent(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with one_line_if_refused(path):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it replaces `path`, on failure it is gone.

    Raises ArtifactError when the disk refuses a write (full, read-only).
    """
    _make_parent(path)
    for left_by_a_kill in path.parent.glob(f".{path.name}.*.tmp"):
        shutil.rmtree(left_by_a_kill, ignore_errors=True)
    with one_line_if_refused(path):
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    temporary.chmod(0o755)  # mkdtemp makes it private, and DVC keeps the mode
    try:
        with one_line_if_refused(path):
            yield temporary
            replace_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _make_parent(path: Path) -> None:
    with one_line_if_refused(path):
        path.parent.mkdir(parents=True, exist_ok=True)


def replace_folder(finished: Path, path: Path) -> None:
    """Move a finished folder to `path`, replacing any folder, file or link there."""
    _make_parent(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    finished.replace(path)


DISK_REFUSALS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EROFS, errno.EACCES, errno.EPERM),
}
IN_THE_WAY = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR}
"""A file where a folder should be, or the other way round."""


@contextmanager
def one_line_if_refused(path: Path) -> Iterator[None]:
    """Turn the disk's refusal of a write (full, read-only) into an ArtifactError about `path`."""
    try:
        yield
    except Exception as error:
        if refused := disk_refusal(error, path):
            raise refused from error
        raise


def disk_refusal(error: Exception, path: Path | None = None) -> ArtifactError | None:
    """Return an error that says what to do if the disk refused a write; None for other errors.

    `path` is what was to be written; without it, the message names the file that the system names.
    """
    if not isinstance(error, OSError):
        # safetensors wraps the system's error in its own class and keeps only the text
        code = re.search(r"\bos error (\d+)", str(error))
        is_refusal = code is not None and int(code[1]) in DISK_REFUSALS
        return _unwritable(path, str(error)) if is_refusal else None
    reason = str(error.strerror)
    if error.errno in IN_THE_WAY and error.filename:
        return ArtifactError(
            f"cannot write {path or error.filename}: {reason}: {error.filename}; a file is "
            "where a folder should be, or vice versa: move it and run again"
        )
    if error.errno not in DISK_REFUSALS:
        return None
    return _unwritable(path or error.filename, reason)


def _unwritable(place: Path | str | None, reason: str) -> ArtifactError:
    place = place or f"a file in this folder or in {tempfile.gettempdir()}"
    return ArtifactError(
        f"cannot write {place}: {reason}. Nothing was left behind; "
        "free some space or change the permissions, and run again."
    )


def write_json(path: Path, value: Any) -> None:
    """Write sorted, indented JSON atomically: the same value gives the same bytes."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with atomic_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON; raises ArtifactError naming the file and line when it is missing or damaged."""
    return _parsed(path, _text(path))


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, or of a folder as the digest of its sorted `sha256  name` lines."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        lines = "".join(
            f"{sha256_of(file)}  {file.relative_to(path).as_posix()}\n" for file in files
        )
        return hashlib.sha256(lines.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json_lines(path: Path, rows: Sequence[Any]) -> None:
    """Write one JSON value per line, atomically."""
    with atomic_file(path) as temporary:
        lines = (json.dumps(row, sort_keys=True, allow_nan=False) + "\n" for row in rows)
        temporary.write_text("".join(lines), encoding="utf-8")


def read_json_lines(path: Path) -> list[Any]:
    """Read one JSON value per line; raises ArtifactError as `read_json` does."""
    lines = _text(path).splitlines()
    return [_parsed(path, line, number) for number, line in enumerate(lines)]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; run the stage that writes it") from error
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is not UTF-8; run the stage that writes it again") from error


def _parsed(path: Path, text: str, lines_before: int = 0) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ArtifactError(
            f"{path}, line {lines_before + error.lineno}: not valid JSON ({error.msg}); run the "
            "stage that writes it again"
        ) from error


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Wait for a lock file and hold it; the system releases it when its holder dies."""
    lock = open_lock(file)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def open_lock(file: Path) -> int:
    """Open a lock file to read, which is enough to lock it, and make it if it is missing.

    Another user may own it, so it is not opened to write. Raises ArtifactError if it cannot be.
    """
    try:
        with suppress(FileNotFoundError):
            return os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
        return os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CREAT, 0o644)
    except OSError as error:
        raise ArtifactError(f"the lock {file} cannot be opened: {error}") from error
