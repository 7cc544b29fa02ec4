"""JSON lines: import top-k captured elsewhere into a knowledge store, and export it.

One line per example, in the data's order: a list with one object per token of the right response,
{token id: natural logarithm of its probability}, as common capture scripts write it:

    [{"318": -0.21, "373": -2.4}, {"257": -0.7, "262": -1.1}]
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from firstkd.data.prompts import Question
from firstkd.errors import ArtifactError
from firstkd.files import atomic_file, atomic_folder
from firstkd.signals.store import SignalStore, write_manifest, write_shard
from firstkd.signals.tokens import Tokens
from firstkd.signals.top_k import Position, packed, token_decisions


def export_lines(store: SignalStore, path: Path) -> None:
    """Write a store's token decisions to `path`, without tail masses or its other columns."""
    if "top_ids" not in store.layout:
        raise ArtifactError(f"{store.folder} holds no token ids; only a signal of tokens does")
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for example in range(len(store.keys)):
            records = store.of_examples(torch.tensor([example]))
            decisions = token_decisions(
                records, store.facts["vocabulary_size"], store.facts.get("draws", 0)
            )
            ids, values = decisions.top_ids.tolist(), decisions.top_logprobs.tolist()
            positions = [_position(*position) for position in zip(ids, values, strict=True)]
            file.write(json.dumps(positions) + "\n")


def _position(ids: Sequence[int], logprobs: Sequence[float]) -> dict[str, float]:
    together = zip(ids, logprobs, strict=True)
    return {str(token): round(value, 6) for token, value in together if math.isfinite(value)}


def import_lines(
    path: Path,
    questions: Sequence[Question],
    keys: Sequence[int],
    signal: Tokens,
    vocabulary_size: int,
    shard_examples: int,
    folder: Path,
    identity: dict[str, Any],
) -> None:
    """Write the store `folder` from the lines of `path`, one per question; `keys` identify these.

    The most probable tokens of each position are kept, as many as the signal selects; the rest
    of the mass is the tail's. If the right token is not listed, its probability stays unknown
    (NaN). Raises ArtifactError if the file is missing or a line does not fit its question; the
    error names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; name a file of JSON lines") from error
    if lines[-1] == "":
        lines.pop()
    if len(lines) != len(questions):
        raise ArtifactError(
            f"{path}: {len(lines)} lines for {len(questions)} examples; expected one per example, "
            "in the split's order"
        )
    layout = signal.layout(vocabulary_size)
    with atomic_folder(folder) as temporary:
        for number, start in enumerate(range(0, len(questions), shard_examples)):
            block = questions[start : start + shard_examples]
            found: list[tuple[Position, int]] = []
            for offset, question in enumerate(block):
                where = f"{path}, line {start + offset + 1}"
                found += _positions(where, lines[start + offset], question, vocabulary_size)
            knowledge = signal.select.of_positions(found, vocabulary_size)
            records = packed(knowledge, torch.tensor([len(_response(q)) for q in block]))
            write_shard(temporary, number, layout, records, keys[start : start + shard_examples])
        facts = signal.facts(vocabulary_size)
        write_manifest(temporary, layout, signal.kind, identity, **facts)


def _response(question: Question) -> list[int]:
    """Tokens of the right response; none if it is unknown."""
    return [] if question.gold is None else question.responses[question.gold]


def _positions(
    where: str, line: str, question: Question, vocabulary_size: int
) -> list[tuple[Position, int]]:
    """Return each position's tokens, and the id of the right one."""
    try:
        read = [
            {int(token): float(logprob) for token, logprob in position.items()}
            for position in json.loads(line)
        ]
    except (ValueError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{where}: not a list of objects {{token id: log-probability}} ({error})"
        ) from error
    response = _response(question)
    if len(read) != len(response):
        raise ArtifactError(
            f"{where}: {len(read)} positions, but the response of example {question.id} has "
            f"{len(response)} tokens; was it captured with the same tokenizer and order?"
        )
    for position in read:
        if not position:
            raise ArtifactError(f"{where}: a position without tokens")
        if wrong := [token for token in position if not 0 <= token < vocabulary_size]:
            raise ArtifactError(
                f"{where}: token id {wrong[0]} is outside the vocabulary of {vocabulary_size:,}"
            )
        mass = math.fsum(map(math.exp, position.values()))
        if mass > 1.01 or max(position.values()) > 0:
            raise ArtifactError(
                f"{where}: probabilities add up to {mass:.3g}; are they natural logarithms?"
            )
    return list(zip(read, response, strict=True))
