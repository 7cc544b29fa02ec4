"""The sizes that docs/scaling.md shows are what the cost model says of them."""

import json
import re
import shlex
import subprocess
import sys

import pytest

from benchmarks.cost_model import CAPTURE_SHARE, record_bytes
from benchmarks.recipe_cost import minutes
from firstkd.settings import load_settings
from firstkd.signals.select import TopK
from firstkd.signals.tokens import Tokens
from tests.pages import commands_of
from tests.tiny import REPOSITORY

PAGE = REPOSITORY / "docs/scaling.md"
ROWS = {
    "signal `tokens`": "signal_bytes",
    "the same as dense float16": "dense_float16_bytes",
    "capture, one GPU at 400 TFLOP/s": "capture_seconds",
    "the teacher on the device": "teacher_bytes",
    "training, per epoch, one such GPU": "training_seconds_per_epoch",
    "memory of training, and activations": "training_bytes",
    "validation": "validate_seconds",
    "opening the store": "open_seconds",
}
UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15}
UNITS |= {"s": 1, "minutes": 60, "hours": 3600, "days": 86400}
COMPUTED = (2, 3)
"""Columns of the table, in the order of the page's commands."""


def in_numbers(cell: str) -> float:
    number, unit = cell.split()
    return float(number) * UNITS[unit]


def test_the_page_shows_what_its_commands_compute() -> None:
    text = PAGE.read_text(encoding="utf-8")
    table = text[text.index("## Three sizes") :]
    cells = {row[0]: row for row in map(split_row, re.findall(r"^\|(.+)\|$", table, re.MULTILINE))}
    commands = [command for command in commands_of(PAGE) if "benchmarks.cost_model " in command]
    assert len(commands) == len(COMPUTED)
    for column, command in zip(COMPUTED, commands, strict=True):
        done = subprocess.run(
            [sys.executable, *shlex.split(command)[1:]],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        )
        computed = json.loads(done.stdout)
        for row, key in ROWS.items():
            assert in_numbers(cells[row][column]) == pytest.approx(computed[key], rel=0.05), row


def split_row(row: str) -> list[str]:
    return [cell.strip() for cell in row.split("|")]


@pytest.mark.parametrize(
    ("vocabulary", "tail_nodes", "size"), [(49_152, 0, 24), (152_000, 0, 27), (49_152, 8, 40)]
)
def test_a_record_is_as_large_as_the_page_says(vocabulary: int, tail_nodes: int, size: int) -> None:
    signal = Tokens(
        kind="tokens", of="teacher", select=TopK(kind="top_k", k=5), tail_nodes=tail_nodes
    )
    assert record_bytes(signal.layout(vocabulary)) == size


def test_a_recipe_costs_its_trainings_and_passes() -> None:
    sizes = {"large": 7e9, "small": 1e9, "examples": 1e4, "tokens": 100, "teraflops": 400}
    trained = 2 * 6 * (7e9 + 1e9 + 1e9)  # two epochs of the teacher, `sft` and `first`
    asked = 2 * 7e9 / CAPTURE_SHARE  # of the teacher: its choices
    shipped = load_settings(REPOSITORY / "params.yaml")
    assert minutes(shipped, sizes) == pytest.approx((trained + asked) * 1e6 / 400e12 / 60)
