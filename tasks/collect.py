"""`firstkd collect`: served questions become a data set of role `unlabelled`.

With corrections, the corrected ones also become one of role `calibration`: tasks/corrections.py.

Reads   logs/traffic/*.parquet, as `firstkd serve` writes them with serve.traffic
Writes  sources/traffic.jsonl, one question per line, without duplicates
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from firstkd.data.text import is_blank
from firstkd.errors import ArtifactError
from firstkd.files import write_json_lines
from tasks.layout import log_folder

NEEDED = ("question", "choices")


def collect(root: Path) -> tuple[Path, int]:
    """Write the file, without questions that hold an invisible text; return its path and how many
    questions it has.

    It replaces an earlier collection. Raises ArtifactError if there is no traffic, or its
    questions were dropped or hashed.
    """
    found = {
        (row["question"], tuple(row["choices"])): {n: row[n] for n in NEEDED}
        for row in traffic(root)
        if not any(map(is_blank, (row["question"], *row["choices"])))  # `prepare` refuses the file
    }
    path = root / "sources/traffic.jsonl"
    write_json_lines(path, list(found.values()))
    return path, len(found)


def traffic(root: Path) -> Iterator[dict[str, Any]]:
    """Yield what was logged about questions with choices, oldest first.

    Raises ArtifactError as `collect` does.
    """
    files = sorted(log_folder(root, "traffic").glob("*.parquet"))
    found = False
    for file in files:
        schema = pq.read_schema(file)
        hashed = (schema.metadata or {}).get(b"hashed", b"").decode().split(",")
        if lacking := [n for n in NEEDED if n not in schema.names or n in hashed]:
            raise ArtifactError(
                f"{file} has no readable {' and '.join(lacking)} (serve.traffic.drop or .hash), "
                "so nothing can be learned from it; delete it, or log these fields"
            )
        readable = [name for name in schema.names if name not in hashed]
        for row in pq.read_table(file, columns=readable).to_pylist():
            if row["choices"]:  # nothing could be learned from open text without its answer
                found = True
                yield row
    if not found:
        raise ArtifactError(
            f"{log_folder(root, 'traffic')} holds no traffic with choices; set serve.traffic in "
            "params.yaml and start `firstkd serve` again"
        )
