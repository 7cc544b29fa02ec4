"""Answers corrected by people: calibration data, and a check of what was promised.

A correction names a served question by the `id` that came with its answer, and gives the right
answer: its text, or its letter. Answers that were right should be among them: a calibration
on errors alone would know nothing else.

Reads   the traffic, and a file of `id` and `answer` (JSON lines, CSV, …)
Writes  sources/corrected.jsonl, labelled questions; each run adds to them
"""

import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstkd.data.records import read_records
from firstkd.data.text import clean
from firstkd.errors import DataValidationError
from firstkd.files import atomic_file, read_json_lines, write_json_lines
from firstkd.measure.bootstrap import Estimate
from firstkd.measure.risk import interval
from firstkd.serving.drift import PROMISE
from firstkd.serving.settings import PolicySettings
from firstkd.serving.wire import question_id
from firstkd.words import counted
from tasks.collect import traffic
from tasks.layout import log_folder

CORRECTED = Path("sources/corrected.jsonl")


@dataclass(frozen=True)
class Corrected:
    path: Path
    questions: int
    """Questions in the file now."""
    unknown: int
    """Corrections whose question is neither in the traffic nor in the file."""
    promise: str | None
    """What the corrections say about the promise; None if they cover no answer that was given."""


def collect_corrected(root: Path, file: Path, policy: PolicySettings | None) -> Corrected:
    """Add the corrected questions to sources/corrected.jsonl; the newest answer counts.

    Raises DataValidationError, naming the place, for a row that is not a correction, or whose
    answer is not one of the choices.
    """
    rows, path = list(traffic(root)), root / CORRECTED
    kept = {_id(row): row for row in (read_json_lines(path) if path.exists() else [])}
    asked = {_id(row): row for row in [*kept.values(), *rows]}
    given, unknown = dict[str, str](), 0
    for where, name, answer in corrections(file):
        if name in asked:
            given[name] = _choice(asked[name]["choices"], answer, where)
        else:
            unknown += 1
    for name, answer in given.items():
        found = {column: asked[name][column] for column in ("question", "choices")}
        kept[name] = {**found, "answer": answer}
    write_json_lines(path, list(kept.values()))
    words = promise_words(rows, kept, policy)
    shown = log_folder(root, "drift") / PROMISE  # by `firstkd status`
    if words is None:
        shown.unlink(missing_ok=True)
    else:
        with atomic_file(shown) as temporary:
            temporary.write_text(f"{words}\n", encoding="utf-8")
    return Corrected(path, len(kept), unknown, words)


def corrections(file: Path) -> Iterable[tuple[str, str, str]]:
    """Yield the place, id and answer of each correction."""
    if not file.is_file():
        raise DataValidationError(f"{file} is missing: name a file with `id` and `answer`")
    for place, record in read_records(file):
        where, named = f"{file}, {place}", [record.get(key) for key in ("id", "answer")]
        if not all(isinstance(each, str) and each for each in named):
            raise DataValidationError(f"{where}: needs `id` and `answer`, both as text")
        yield where, str(named[0]), str(named[1])


def _id(row: dict[str, Any]) -> str:
    return question_id(row["question"], row["choices"])


def _choice(choices: Sequence[str], answer: str, where: str) -> str:
    wanted = clean(answer)
    letters = dict(zip(string.ascii_uppercase, choices, strict=False))
    if wanted not in choices and wanted not in letters:
        raise DataValidationError(f"{where}: {answer!r} is not one of the choices {[*choices]}")
    return wanted if wanted in choices else letters[wanted]


def promise_words(
    rows: Iterable[dict[str, Any]],
    corrected: Mapping[str, dict[str, Any]],
    policy: PolicySettings | None,
) -> str | None:
    """Say how many of the answers given were wrong, among the questions that were corrected.

    Only the version that answered last counts, since each has its own promise. A question that was
    asked often counts once, by its last answer: repeats add no evidence.
    """
    known = [row for row in rows if row["route"] == "answered" and _id(row) in corrected]
    if not known or policy is None:
        return None
    version = known[-1]["by"]
    ours = {_id(row): row for row in known if row["by"] == version and row.get("answer")}
    if not ours:
        return (
            f"{version}: the traffic holds no answers (serve.traffic.drop or .hash), so its "
            "promise cannot be judged"
        )
    wrong = sum(_place(row) != _place(corrected[name]) for name, row in ours.items())
    return f"{version}: {kept_words(interval(wrong, len(ours)), len(ours), policy.max_error)}"


def _place(row: dict[str, Any]) -> int:
    """Position of the answer among the choices, which questions with the same id share; their texts
    may differ in case and spacing."""
    return list(row["choices"]).index(row["answer"])


def kept_words(error: Estimate, answers: int, most: float) -> str:
    """Say whether a promise of at most `most` wrong answers still holds, by their interval."""
    said = "it holds" if error.high <= most else "nothing contradicts it"
    if error.value > most:
        said = "it may be broken"
    if error.low > most:
        said = "it is broken: recalibrate or retrain"
    wrong = (
        f"{error.value:.1%} of {counted(answers, 'answer')} ({error.low:.1%} to {error.high:.1%})"
    )
    return f"wrong: {wrong}; the promise was at most {most:.0%}; {said}"


def recalibration_words(who: str, measured: dict[str, Any]) -> str:
    """Say what was fitted, and whether the earlier promise held on the same questions."""
    newer = measured["recalibrated"]
    words = (
        f"fitted to {newer['questions']:,} questions: {who}'s temperature changes from "
        f"{newer['temperature_before']:.3g} to {measured['temperature']:.3g}"
    )
    if promised := newer.get("promise_before"):
        error, answers = Estimate(**promised["error"]), promised["answers"]
        words += f"\n{who}'s promise on them: {kept_words(error, answers, promised['max_error'])}"
    return words
