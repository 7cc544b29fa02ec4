"""Examples as flat frames of scalars, one per split, ready to be validated.

Great Expectations hashes the whole frame at each validation and is quadratic on lists (200,000
rows with one list column: 3.6 s a call, 0.08 s without). So what concerns choices or
other splits becomes a column of its own.
"""

from collections import defaultdict
from typing import Any

import pandas as pd

from firstkd.data.examples import SCHEMA, Example, normalise, side_of

Examples = list[Example]

FLAT = [name for name in SCHEMA.names if name not in ("choices", "history")]
OF_CHOICES = ["num_choices", "blank_choices", "distinct_choices", "chosen"]
OF_SPLITS = ["same_id_in", "same_question_in", "same_group_in", "prompt_tokens", "response_tokens"]


def flat_frames(
    splits: dict[str, Examples], lengths: dict[str, list[tuple[int, int]]]
) -> dict[str, pd.DataFrame]:
    """Return one frame of scalars per split; `lengths` are tokens of prompt and response."""
    ids: defaultdict[str, set[str]] = defaultdict(set)
    questions: defaultdict[str, set[str]] = defaultdict(set)
    groups: defaultdict[str | None, set[str]] = defaultdict(set)
    for split, examples in splits.items():
        for example in examples:
            ids[example.id].add(split)
            questions[normalise(example.asked)].add(split)
            groups[example.group].add(side_of(split))
    groups[None] = set()  # what has none shares none
    frames = {}
    for split, examples in splits.items():
        rows = [_scalars(example) for example in examples]
        for row, example, (prompt, response) in zip(rows, examples, lengths[split], strict=True):
            row["prompt_tokens"], row["response_tokens"] = prompt, response
            row["same_id_in"] = _others(ids[example.id], split)
            row["same_question_in"] = _others(questions[normalise(example.asked)], split)
            row["same_group_in"] = _others(groups[example.group], side_of(split))
        frames[split] = pd.DataFrame(rows, columns=_columns(rows))
    return frames


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    """The columns in any row, and those that every frame must have even without a row."""
    return list(
        dict.fromkeys([*FLAT, *OF_CHOICES, *OF_SPLITS, *(key for row in rows for key in row)])
    )


def _scalars(example: Example) -> dict[str, Any]:
    choices, answer = example.choices, example.answer_index
    row = {name: getattr(example, name) for name in FLAT}
    if choices is None:
        return {**row, "chosen": None if answer is None else ""}
    chosen = choices[answer] if answer is not None and 0 <= answer < len(choices) else ""
    return {
        **row,
        "num_choices": len(choices),
        "blank_choices": sum(not choice.strip() for choice in choices),
        "distinct_choices": len(set(choices)),
        "chosen": chosen,
        **{f"answer_at_{i}": float(answer == i) for i in range(len(choices))},
    }


def _others(owners: set[str], split: str) -> str | None:
    return ", ".join(sorted(owners - {split})) or None
