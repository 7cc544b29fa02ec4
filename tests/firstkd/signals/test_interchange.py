import json
import math
from pathlib import Path

import pytest
import torch

from firstkd.data.prompts import Question
from firstkd.errors import ArtifactError
from firstkd.signals.interchange import export_lines, import_lines
from firstkd.signals.knowledge import KnowledgeStore, Layout

LAYOUT = Layout(kind="token", top_k=2, vocabulary_size=100)
QUESTIONS = [
    Question("a", [1, 2], [[8], [5, 6]], 1),
    Question("b", [3], [[7]], 0),
    Question("empty", [3], [[]], 0),
]
LINES = [
    [{"5": math.log(0.5), "9": math.log(0.3), "4": math.log(0.1)}, {"1": math.log(0.25)}],
    [{"2": math.log(0.6), "7": math.log(0.4)}],
    [],
]


def imported(folder: Path, lines: object = LINES, shard_examples: int = 2) -> KnowledgeStore:
    text = "".join(json.dumps(line) + "\n" for line in lines)  # type: ignore[attr-defined]
    (folder / "lines.jsonl").write_text(text)
    import_lines(
        folder / "lines.jsonl", QUESTIONS, LAYOUT, shard_examples, folder / "store", {"by": "them"}
    )
    return KnowledgeStore(folder / "store")


def test_the_most_probable_are_kept_and_the_rest_is_the_tail(tmp_path: Path) -> None:
    store = imported(tmp_path)
    store.check({"by": "them"}, QUESTIONS)
    first = store.of_examples(torch.tensor([0]))
    assert first.top_ids[0].tolist() == [5, 9]
    probabilities = [[0.5, 0.3], [0.25, 0.0]]
    torch.testing.assert_close(
        first.top_logprobs.exp(), torch.tensor(probabilities), atol=1e-3, rtol=0
    )
    torch.testing.assert_close(first.tail_mass, torch.tensor([0.2, 0.75]), atol=1e-3, rtol=0)
    assert len(store.of_examples(torch.tensor([2]))) == 0


def test_what_is_not_given_is_unknown_and_refused_where_it_is_needed(tmp_path: Path) -> None:
    store = imported(tmp_path)
    assert store.decoded().gold_logprob.isnan().tolist() == [False, True, False]
    assert store.manifest["missing"] == ["gold_logprob", "tail_bends"]
    with pytest.raises(ArtifactError, match="lacks gold_logprob"):
        store.require("gold_logprob")


def test_export_gives_back_what_was_kept(tmp_path: Path) -> None:
    export_lines(imported(tmp_path), tmp_path / "out.jsonl")
    read = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [len(line) for line in read] == [2, 1, 0]
    assert read[0][0].keys() == {"5", "9"}
    assert read[0][1].keys() == {"1"}
    assert read[1][0]["2"] == pytest.approx(math.log(0.6), abs=1e-3)
    again = tmp_path / "again"
    again.mkdir()
    import_lines(tmp_path / "out.jsonl", QUESTIONS, LAYOUT, 2, again / "store", {})
    found = KnowledgeStore(again / "store").decoded()
    torch.testing.assert_close(found.top_ids, KnowledgeStore(tmp_path / "store").decoded().top_ids)


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (LINES[:2], "2 lines for 3 examples"),
        ([LINES[0][:1], *LINES[1:]], "line 1: 1 positions, but the response of example a has 2"),
        ([*LINES[:1], [{"2": "x"}], []], "line 2: not a list of objects"),
        ([*LINES[:1], [{}], []], "line 2: a position without tokens"),
        ([*LINES[:1], [{"100": -1.0}], []], "token id 100 is outside the vocabulary of 100"),
        ([*LINES[:1], [{"2": 0.6, "7": 0.4}], []], "are they natural logarithms"),
    ],
)
def test_what_does_not_fit_is_named_and_leaves_nothing(tmp_path, lines, error) -> None:
    with pytest.raises(ArtifactError, match=error):
        imported(tmp_path, lines)
    assert not (tmp_path / "store").exists()
