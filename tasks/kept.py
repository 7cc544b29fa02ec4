"""What the record keeps of the registered student and its exports, and where a run has it."""

from collections.abc import Iterator
from pathlib import Path

from firstkd.exports.reader import FACTS
from firstkd.files import read_json
from firstkd.settings import Settings
from tasks.layout import evaluation_folder, export_folder

EVIDENCE = ("metrics.json", "predictions.parquet", "calibration.json")


def kept(root: Path, settings: Settings) -> dict[str, Path]:
    """Return the files and folders of a project that a run keeps, by their place there.

    `evaluation/` has what the gate reads, also for exports; `exports/NAME` is the export itself.
    """
    student, exports = settings.record.student, settings.student_exports
    places = {"evaluation": student}
    places |= {f"evaluation/exports/{e}": e for e in exports if e in settings.measured_exports}
    found = {
        f"{place}/{file}": evaluation_folder(root, name) / file
        for place, name in places.items()
        for file in EVIDENCE
    }
    return found | {f"exports/{name}": export_folder(root, name) for name in exports}


def export_hashes(root: Path, settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield the SHA-256 of each export's file, as tags of a version."""
    for name in settings.student_exports:
        facts = read_json(export_folder(root, name) / FACTS)
        yield f"export_{name}_sha256", facts["sha256"][facts["file"]]
