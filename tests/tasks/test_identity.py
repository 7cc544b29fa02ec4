"""What decides whether knowledge is stale, and whether unfinished work may be resumed."""

import shutil

from firstkd.files import sha256_of
from tasks import identity
from tasks.identity import code_sha256, remembered_sha256
from tests.tiny import REPOSITORY


def test_a_large_model_is_read_once_until_it_changes(tmp_path, monkeypatch):
    model, memory = tmp_path / "model", tmp_path / "memory/model.json"
    (model / "part").mkdir(parents=True)
    for name in ("a.safetensors", "part/b.safetensors"):
        (model / name).write_bytes(b"weights of " + name.encode())
    read = []

    def counting(path):
        read.append(path)
        return sha256_of(path)

    monkeypatch.setattr(identity, "sha256_of", counting)
    whole = sha256_of(model)
    assert remembered_sha256(model, memory) == whole
    assert remembered_sha256(model, memory) == whole
    assert read == [model]
    (model / "part/b.safetensors").write_bytes(b"WEIGHTS OF part/b.safetensors")  # of one size
    assert remembered_sha256(model, memory) == sha256_of(model) != whole
    (model / "a.safetensors").unlink()
    assert remembered_sha256(model, memory) == sha256_of(model)


def test_the_code_is_all_modules_of_all_subpackages(tmp_path):
    for package in ("firstkd", "tasks"):
        shutil.copytree(REPOSITORY / package, tmp_path / package)
    found = {code_sha256(tmp_path)}
    assert found == {code_sha256()}
    for module in ("firstkd/models/head.py", "firstkd/train/engine.py", "tasks/extract.py"):
        with (tmp_path / module).open("a") as file:
            file.write("# changed\n")
        found.add(code_sha256(tmp_path))
    assert len(found) == 4
