"""What the benchmark of economics measures, and that it measures."""

import json

import pytest

from benchmarks import economics
from benchmarks.economics import main, measure, table, wanted


def test_one_thing_is_changed_at_a_time():
    default, *others = rows = wanted(tiny=False)
    assert len({json.dumps(row) for row in rows}) == len(rows) > 9
    for row in others:
        changed = {key for key in row if row[key] != default[key]} - {"threads"}
        assert len(changed) == 1 or changed == {"processes", "zero_stage"}
    assert {row["zero_stage"] for row in rows} >= {0, 1, 2, 3, "ddp"}


def test_rows_that_are_there_are_not_measured_again(tmp_path, monkeypatch, capsys):
    done = []

    def measured(row):
        done.append(row)
        return {**row, "actual_stage": 1, "tokens_per_second": 500.0, "gigabytes": 2.0}

    monkeypatch.setattr(economics, "in_processes", measured)
    for _ in range(2):
        main(tmp_path / "rows.jsonl", euros_per_hour=0.5, tiny=True)
    assert done == wanted(tiny=True)
    assert "| 500 | 2.0 | 3.6 |" in capsys.readouterr().out  # 500 · 3600 / 0.5 / 10⁶


def test_ddp_is_named_in_the_table():
    row = wanted(tiny=True)[0] | {"actual_stage": None, "tokens_per_second": 1, "gigabytes": 1}
    assert "| ddp |" in table([row], 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, "ddp"])
def test_a_row_is_measured(stage):
    [row, *_] = wanted(tiny=True)
    row |= {"zero_stage": stage, "questions": 2, "threads": 1, "precision": "fp32"}
    found = measure(row)
    assert found["tokens_per_second"] > 0 and found["gigabytes"] > 0.1
    assert found["actual_stage"] == (None if stage == "ddp" else 0)
