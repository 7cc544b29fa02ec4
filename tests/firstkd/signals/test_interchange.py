import json
import math
from pathlib import Path

import pytest
import torch

from firstkd.data.prompts import Question
from firstkd.errors import ArtifactError
from firstkd.models.folders import load_model
from firstkd.signals.interchange import export_lines, import_lines
from firstkd.signals.knowledge import Knowledge
from firstkd.signals.store import SignalStore
from firstkd.signals.tokens import Tokens
from tests.firstkd.signals.stores import CHOICES, capture_into, decisions_of, write_choices

SIGNAL = Tokens(kind="tokens", of="m", select={"kind": "top_k", "k": 2})
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


def imported(folder: Path, lines: object = LINES) -> SignalStore:
    text = "".join(json.dumps(line) + "\n" for line in lines)  # type: ignore[attr-defined]
    (folder / "lines.jsonl").write_text(text)
    return imported_from(folder / "lines.jsonl", folder / "store")


def imported_from(lines: Path, folder: Path) -> SignalStore:
    import_lines(lines, QUESTIONS, [7, 8, 9], SIGNAL, 100, 2, folder, {"by": "them"})
    return SignalStore(folder)


def whole(store: SignalStore) -> Knowledge:
    return SIGNAL.decisions(store.whole(), store.facts)


def test_the_most_probable_are_kept_and_the_rest_is_the_tail(tmp_path: Path) -> None:
    store = imported(tmp_path)
    assert store.identity == {"by": "them"} and store.keys.tolist() == [7, 8, 9]
    first = decisions_of(SIGNAL, store, 0)
    assert first.top_ids[0].tolist() == [5, 9]
    probabilities = [[0.5, 0.3], [0.25, 0.0]]
    torch.testing.assert_close(
        first.top_logprobs.exp(), torch.tensor(probabilities), atol=1e-3, rtol=0
    )
    torch.testing.assert_close(first.tail_mass, torch.tensor([0.2, 0.75]), atol=1e-3, rtol=0)
    assert len(decisions_of(SIGNAL, store, 2)) == 0


def test_what_is_not_given_is_unknown_and_refused_where_it_is_needed(tmp_path: Path) -> None:
    store = imported(tmp_path)
    assert whole(store).gold_logprob.isnan().tolist() == [False, True, False]
    assert store.manifest["incomplete"] == ["gold_logprob"]
    with pytest.raises(ArtifactError, match="lacks gold_logprob"):
        store.require("gold_logprob")


def test_export_gives_back_what_was_kept(tmp_path: Path) -> None:
    store = imported(tmp_path)
    export_lines(store, tmp_path / "out.jsonl")
    read = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [len(line) for line in read] == [2, 1, 0]
    assert read[0][0].keys() == {"5", "9"}
    assert read[0][1].keys() == {"1"}
    assert read[1][0]["2"] == pytest.approx(math.log(0.6), abs=1e-3)
    again = imported_from(tmp_path / "out.jsonl", tmp_path / "again")
    torch.testing.assert_close(whole(again).top_ids, whole(store).top_ids)
    torch.testing.assert_close(whole(again).top_logprobs, whole(store).top_logprobs)


def test_draws_are_exported_as_shares_of_all_draws(tmp_path: Path, tiny_model: Path) -> None:
    drawn = Tokens(kind="tokens", of="m", select={"kind": "sample", "draws": 4})
    questions = [Question("a", [1, 2], [[8], [5, 6]], 1), Question("b", [3], [[7]], 0)]
    store = capture_into(tmp_path / "tokens", drawn, load_model(tiny_model, "fp32"), questions)
    export_lines(store, tmp_path / "out.jsonl")
    read = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [len(line) for line in read] == [2, 1]
    for position in (position for line in read for position in line):
        assert math.fsum(map(math.exp, position.values())) == pytest.approx(1, abs=1e-5)


def test_a_signal_without_token_ids_is_not_exported(tmp_path: Path) -> None:
    logprobs = torch.tensor([[0.25, 0.75]]).log()
    store = SignalStore(write_choices(tmp_path / CHOICES.kind, logprobs, [1]))
    with pytest.raises(ArtifactError, match="choices holds no token ids; only a signal of tokens"):
        export_lines(store, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


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


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"lines\.jsonl is missing; name a file of JSON lines"):
        imported_from(tmp_path / "lines.jsonl", tmp_path / "store")
    assert not (tmp_path / "store").exists()
