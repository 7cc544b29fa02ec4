"""What an interrupted stage keeps, and when it is dropped."""

import json

from firstkd.train.distributed import Ranks
from tasks import partial
from tasks.costs import USAGE, asking_cost
from tasks.partial import partial_folder


def test_half_written_files_go_and_folders_stay(tmp_path):
    folder = partial_folder(tmp_path, "shape", 1, Ranks())
    for path in ("12/.half.tmp", "12/data/.train/model/step-00000100/state.json"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("")
    assert partial_folder(tmp_path, "shape", 1, Ranks()) == folder
    assert [p.name for p in folder.rglob("*") if p.is_file()] == ["state.json"]
    partial_folder(tmp_path, "shape", 2, Ranks())
    assert not folder.exists()


def test_other_code_drops_only_what_it_decides(tmp_path, monkeypatch):
    hashes = {"firstkd": "a", "tasks": "b"}
    monkeypatch.setattr(partial, "code_sha256", lambda of: "".join(hashes[each] for each in of))
    places = [
        partial_folder(tmp_path, "asked", 1, Ranks(), ["firstkd"]),
        partial_folder(tmp_path, "made", 1, Ranks()),
    ]
    hashes["tasks"] = "c"
    assert partial_folder(tmp_path, "asked", 1, Ranks(), ["firstkd"]) == places[0]
    assert partial_folder(tmp_path, "made", 1, Ranks()) != places[1]


def test_a_price_that_came_later_counts_from_then_on(tmp_path):
    lines = [{"requests": 2}, {"requests": 3, "cost": 1.5}]
    (tmp_path / USAGE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert asking_cost(tmp_path) == {"requests": 5, "cost": 1.5}
