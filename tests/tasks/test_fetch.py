import gzip
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from firstkd.errors import SourceError
from firstkd.files import sha256_of
from tasks import fetch
from tests.tiny import write_tiny_params, write_tiny_questions


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A tiny project's params.yaml and data."""
    write_tiny_questions(tmp_path / "sources/questions.jsonl", 8, seed=1)
    write_tiny_questions(tmp_path / "sources/elsewhere.jsonl", 4, seed=2)
    write_tiny_params(tmp_path)
    return tmp_path


def change(project: Path, name: str, value: dict[str, Any]) -> None:
    yaml = YAML()
    params = yaml.load(project / "params.yaml")
    params["fetch"]["datasets"][name] = value
    yaml.dump(params, project / "params.yaml")


def test_data_land_under_their_names(project: Path) -> None:
    fetch.main(project)
    fetched = sorted(file.name for file in (project / "data/fetch").iterdir())
    assert fetched == ["elsewhere.jsonl", "questions.jsonl"]
    original = project / "sources/questions.jsonl"
    assert sha256_of(project / "data/fetch/questions.jsonl") == sha256_of(original)


def test_the_same_sources_give_the_same_bytes(project: Path) -> None:
    fetch.main(project)
    before = sha256_of(project / "data/fetch")
    fetch.main(project)
    assert sha256_of(project / "data/fetch") == before


def test_a_wrong_sha256_leaves_nothing(project: Path) -> None:
    dataset = {"source": "path:sources/questions.jsonl", "format": "questions", "role": "split"}
    change(project, "questions", {**dataset, "sha256": "0" * 64})
    with pytest.raises(SourceError, match=r"questions\.jsonl: sha256 is [0-9a-f]{64}, expected 0"):
        fetch.main(project)
    assert list((project / "data").iterdir()) == []


def test_data_of_an_unknown_suffix_is_refused(project: Path) -> None:
    (project / "sources/a.xlsx").write_bytes(b"")
    dataset = {"source": "path:sources/a.xlsx", "format": "questions", "role": "split"}
    change(project, "questions", dataset)
    with pytest.raises(SourceError, match=r"fetch\.datasets\.questions: .* is not a data file"):
        fetch.main(project)


@pytest.mark.parametrize(
    ("name", "fetched"),
    [
        ("a.parquet", "questions.parquet"),
        ("a.ndjson", "questions.ndjson"),
        ("a.CSV", "questions.csv"),
        ("a.JSONL.GZ", "questions.jsonl"),
    ],
)
def test_data_files_keep_their_kind(project: Path, name: str, fetched: str) -> None:
    content = b"{}\n"
    packed = name.endswith("GZ")
    (project / "sources" / name).write_bytes(gzip.compress(content) if packed else content)
    dataset = {"source": f"path:sources/{name}", "format": "questions", "role": "split"}
    change(project, "questions", dataset)
    fetch.main(project)
    assert (project / "data/fetch" / fetched).read_bytes() == content


def test_data_that_are_a_git_lfs_pointer_are_named(project: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (project / "sources/questions.jsonl").write_text(pointer)
    with pytest.raises(SourceError, match=r"questions\.jsonl is a Git LFS pointer"):
        fetch.main(project)


def test_a_folder_in_the_place_of_a_data_file_is_refused_and_nothing_is_left(
    project: Path,
) -> None:
    (project / "sources/questions.jsonl").unlink()
    (project / "sources/questions.jsonl").mkdir()
    with pytest.raises(
        SourceError, match=r"fetch\.datasets\.questions: .* is a folder; name the data file in it"
    ):
        fetch.main(project)
    assert list((project / "data").iterdir()) == []
