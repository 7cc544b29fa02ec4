import os
import re
import tempfile
from pathlib import Path

import pytest

from firstkd.errors import ArtifactError
from firstkd.files import (
    atomic_file,
    atomic_folder,
    disk_refusal,
    read_json,
    read_json_lines,
    sha256_of,
    write_json,
    write_json_lines,
)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_folder_leaves_nothing_and_a_finished_one_replaces(tmp_path):
    folder = tmp_path / "stage"
    with pytest.raises(RuntimeError), atomic_folder(folder) as temporary:
        (temporary / "half").touch()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    for name in ("first", "second"):
        with atomic_folder(folder) as temporary:
            (temporary / name).touch()
    assert [path.name for path in folder.iterdir()] == ["second"]


@pytest.mark.parametrize("there", ["a file", "a link to a folder", "a link to nothing"])
def test_a_finished_folder_replaces_whatever_is_there(tmp_path, there):
    folder, elsewhere = tmp_path / "stage", tmp_path / "elsewhere"
    if there == "a file":
        folder.write_text("")
    else:
        folder.symlink_to(elsewhere)
    if there == "a link to a folder":
        elsewhere.mkdir()
        (elsewhere / "kept").touch()
    with atomic_folder(folder) as temporary:
        (temporary / "made").touch()
    assert [path.name for path in folder.iterdir()] == ["made"]
    assert there != "a link to a folder" or (elsewhere / "kept").exists()


@pytest.mark.parametrize("write", [atomic_file, atomic_folder])
def test_a_file_in_the_place_of_a_parent_folder_is_named(tmp_path, write):
    (tmp_path / "data").write_text("mine")
    for name in ("data/stage", "data/deeper/stage"):
        with (
            pytest.raises(ArtifactError, match="is where a folder should be"),
            write(tmp_path / name),
        ):
            raise AssertionError
    assert (tmp_path / "data").read_text() == "mine"


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    (tmp_path / "metrics.json").mkdir()
    with pytest.raises(ArtifactError, match=r"cannot write .*metrics\.json: Is a directory"):
        write_json(tmp_path / "metrics.json", {})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied", "logs/x"), "cannot write logs/x: Permission"),
        (OSError(28, "No space left on device"), "this folder or in /.*: No space left"),
        (
            FileExistsError(17, "File exists", "logs"),
            "cannot write logs: File exists: logs; a file",
        ),
        (FileNotFoundError(2, "No such file or directory", "x"), None),
        (ValueError("os error"), None),
        (ValueError("I/O error: no space left (os error 28)"), "this folder or in /.*: I/O error"),
        (ValueError("out of memory (os error 12)"), None),
    ],
)
def test_what_the_disk_refuses_is_told_from_other_errors(error, said):
    found = disk_refusal(error)
    assert re.search(said, str(found)) if said else found is None


def test_what_a_kill_left_is_removed_by_the_next_run(tmp_path):
    (tmp_path / ".stage.abc.tmp").mkdir()
    with atomic_folder(tmp_path / "stage"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["stage"]


def test_a_full_disk_is_one_clear_error(small_disk):
    with (
        pytest.raises(ArtifactError, match="No space left on device"),
        atomic_folder(small_disk / "stage") as temporary,
    ):
        (temporary / "large").write_bytes(bytes(2**20))
    assert list(small_disk.iterdir()) == []


def test_a_full_disk_under_safetensors_is_the_same_error(small_disk):
    import torch
    from safetensors.torch import save_file

    with (
        pytest.raises(ArtifactError, match=r"cannot write .*stage"),
        atomic_folder(small_disk / "stage") as temporary,
    ):
        save_file({"weight": torch.zeros(2**18)}, temporary / "model.safetensors")
    assert list(small_disk.iterdir()) == []


@pytest.fixture
def read_only():
    """A folder in which nobody may write, and this user is nobody."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        user = os.geteuid()
        if user == 0:  # who may write everywhere
            os.seteuid(65534)
        yield Path(folder)
        os.seteuid(user)
        os.chmod(folder, 0o755)


@pytest.mark.parametrize("write", [atomic_file, atomic_folder])
@pytest.mark.parametrize("name", ["stage", "deeper/stage"])
def test_a_folder_that_may_not_be_written_is_one_clear_error(read_only, write, name):
    with (
        pytest.raises(ArtifactError, match=r"cannot write .*stage: Permission denied"),
        write(read_only / name) as temporary,
    ):
        temporary.write_text("whole")
    assert list(read_only.iterdir()) == []


def test_damaged_json_is_named_with_its_line(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1,\n"b"}')
    with pytest.raises(ArtifactError, match=r"a\.json, line 2: not valid JSON .*; run the stage"):
        read_json(tmp_path / "a.json")


def test_a_damaged_line_is_named_with_its_number(tmp_path):
    write_json_lines(tmp_path / "a.jsonl", [{"a": 1}, {"b": 2}])
    assert read_json_lines(tmp_path / "a.jsonl") == [{"a": 1}, {"b": 2}]
    for damage in (b'{"a": 1}\n{"b"\n', b'{"a": 1}\n\xff\n'):
        (tmp_path / "a.jsonl").write_bytes(damage)
        with pytest.raises(ArtifactError, match=r"a\.jsonl(, line 2: not valid| is not UTF-8)"):
            read_json_lines(tmp_path / "a.jsonl")


def test_a_folders_digest_knows_names_and_contents(tmp_path):
    (tmp_path / "a").write_text("1")
    before = sha256_of(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    renamed = sha256_of(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({before, renamed, sha256_of(tmp_path)}) == 3
