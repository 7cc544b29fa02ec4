"""What a stage cost besides its time, from its logs."""

import json
from pathlib import Path

from firstkd.files import read_json_lines

CURVE = "curve.jsonl"
"""A file in a stage's logs, with a line for each step of a training."""
USAGE = "usage.jsonl"
"""A file in a stage's logs, with a line for each shard that was requested from a server."""


def training_cost(live_curve: Path) -> dict[str, float]:
    """Return a training stage's tokens, in all and per second; nothing for other stages."""
    if not live_curve.exists():
        return {}
    points = [json.loads(line) for line in live_curve.read_text(encoding="utf-8").splitlines()]
    tokens = sum(point["step_tokens"] for point in points)
    seconds = sum(point["step_tokens"] / point["tokens_per_second"] for point in points)
    return {"tokens": tokens, "tokens_per_second": round(tokens / seconds, 1)}


def asking_cost(logs: Path) -> dict[str, float]:
    """Return requests, retries, tokens and cost of all that the stage last asked a server for.

    Empty for stages that use no server.
    """
    if not (logs / USAGE).exists():
        return {}
    lines = read_json_lines(logs / USAGE)
    keys = {key: None for line in lines for key in line}
    return {key: sum(line.get(key, 0) for line in lines) for key in keys}
