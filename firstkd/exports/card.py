"""The model card of an export: what it is, where it comes from, its accuracy and calibration.

It names no commit, so that the same export gives the same bytes; the registry knows each commit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from firstkd.exports.base import Export


@dataclass(frozen=True)
class Origin:
    model: str
    source: str
    """Where its original model was fetched from."""
    teachers: Sequence[str]
    data: Mapping[str, str]
    """Source of each data set, by name."""


def card(
    name: str, export: Export, origin: Origin, facts: dict[str, Any], measured: dict[str, Any]
) -> str:
    folded, inside = facts["folded_temperature"], facts["temperature"]
    calibration = (
        f"T = {folded:.3f} is already in the weights: do not divide the scores."
        if folded
        else f"divide the choices' scores by T = {inside:.3f} (in firstkd.json)."
    )
    lines = [
        "---",
        f"license: {export.license.lower()}",
        "pipeline_tag: text-generation",
        "tags: [firstkd, distillation, calibration]",
        "---",
        f"# {name}: {origin.model} as {export.kind}, {export.weights}",
        "",
        f"Made from {origin.source}. Licence: {export.license}.",
        f"Learned from: {', '.join(origin.teachers) or 'answers alone'}.",
        "Data: " + "; ".join(f"{name} ({source})" for name, source in origin.data.items()) + ".",
        "",
        f"Calibration: {calibration}",
        "A choice's score is the mean log-probability of its tokens after the prompt.",
        "",
        *_usage(export),
        f"Measured before the export ({origin.model} in its own precision), with 95 % intervals:",
        "",
        "| test set | questions | accuracy | NLL at T | ECE | ECE at T |",
        "|---|---|---|---|---|---|",
        *_rows(measured["sets"]),
        "",
    ]
    return "\n".join(lines)


def _usage(export: Export) -> list[str]:
    command = '    python answer.py "Where does a fox live?" "in a den" "in a hive"'
    return [f"With numpy, tokenizers and {export.runtime} installed:", "", command, ""]


def _rows(sets: Mapping[str, Any]) -> list[str]:
    columns = [
        *(("raw", "accuracy"), ("calibrated", "nll")),
        *(("raw", "ece"), ("calibrated", "ece")),
    ]
    return [
        f"| {name} | {found['examples']} | "
        + " | ".join(_cell(found[reading][metric]) for reading, metric in columns)
        + " |"
        for name, found in sets.items()
    ]


def _cell(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:.3f} ({estimate['low']:.2f}–{estimate['high']:.2f})"
