"""What is logged of real requests, and what is not."""

import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from firstkd.data.readers import read
from firstkd.data.settings import DatasetSource
from firstkd.errors import ArtifactError
from firstkd.serving.wire import question_id
from tasks.collect import collect
from tests.firstkd.serving.servers import (
    ASKED,
    CHOICES,
    QUESTION,
    Registry,
    ask,
    served,
    serving,
    settings,
)

KEPT = {"drop": [], "hash": [], "rows": 4, "files": 3}


@pytest.fixture(scope="module")
def champion(tiny_model, tmp_path_factory):
    return served(tiny_model, tmp_path_factory.mktemp("champion"))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "logs/traffic"


def serve(champion, folder, requests=1, **traffic):
    chosen = settings(traffic={**KEPT, **traffic} if traffic is not None else None)
    with serving(Registry(champion), chosen, traffic_folder=folder) as client:
        asked = [{**ASKED, "question": f"{QUESTION} {n}"} for n in range(requests)]
        return [told for each in asked for told in ask(client, each, ASKED)]


def rows(folder):
    return pa.concat_tables([pq.read_table(f) for f in sorted(folder.glob("*.parquet"))])


def test_nothing_is_logged_unless_asked_for(champion, folder):
    with serving(Registry(champion), settings(), traffic_folder=folder) as client:
        ask(client)
    assert not folder.exists()


def test_a_stop_writes_what_came_last(champion, folder):
    told = serve(champion, folder, requests=3)
    found = rows(folder).to_pylist()
    assert [row["question"] for row in found[::2]] == [f"{QUESTION} {n}" for n in range(3)]
    for row, each in zip(found, told, strict=True):
        assert row["choices"] == CHOICES
        assert {name: row[name] for name in each if name != "id"} == {
            name: each[name] for name in each if name != "id"
        }
        assert each["id"] == question_id(row["question"], row["choices"])


def test_the_oldest_files_go(champion, folder):
    serve(champion, folder, requests=12)
    files = sorted(folder.glob("*.parquet"))
    assert len(files) == 3 and len(rows(folder)) < 24
    assert rows(folder)["question"].to_pylist()[-2] == f"{QUESTION} 11"


def test_fields_are_dropped_and_hashed_before_they_are_written(champion, folder):
    serve(champion, folder, drop=["answer"], hash=["question", "choices", "guess"])
    [file] = folder.glob("*.parquet")
    for word in (QUESTION, *CHOICES):
        assert word.encode() not in file.read_bytes()
    first, second = rows(folder).to_pylist()
    assert "answer" not in first
    assert len(first["question"]) == 32 and first["question"] != second["question"]
    assert len(first["choices"]) == 3 and first["choices"] == second["choices"]
    assert first["guess"] in first["choices"] or len(first["guess"]) == 32


def test_a_disk_that_refuses_costs_rows_but_no_answers(champion, folder, caplog):
    folder.parent.mkdir(parents=True)
    folder.write_text("no folder")
    with caplog.at_level(logging.WARNING):
        assert len(serve(champion, folder, requests=4)) == 8
    assert "rows of traffic could not be written" in caplog.text


def test_traffic_becomes_an_unlabelled_data_set(champion, folder, tmp_path):
    with pytest.raises(ArtifactError, match="holds no traffic"):
        collect(tmp_path)
    serve(champion, folder, requests=3)
    path, count = collect(tmp_path)
    assert count == 4  # one of them was asked three times
    dataset = DatasetSource(
        source="path:sources/traffic.jsonl", format="questions", role="unlabelled"
    )
    found = list(read(path, dataset, "traffic"))
    assert {example.prompt for example in found} == {
        QUESTION,
        *(f"{QUESTION} {n}" for n in range(3)),
    }
    assert all(e.choices == tuple(CHOICES) and e.answer_index is None for e in found)
    assert collect(tmp_path)[0].read_bytes() == path.read_bytes()


def test_what_cannot_be_read_is_not_collected(champion, folder, tmp_path):
    serve(champion, folder, hash=["question"])
    with pytest.raises(ArtifactError, match="no readable question"):
        collect(tmp_path)
