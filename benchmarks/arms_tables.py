"""The tables of `benchmarks.arms`, in Markdown."""

from firstkd.measure.bootstrap import Estimate

REFERENCE = "average"
"""The arm that the others are compared with."""
Measured = dict[str, dict[str, Estimate]]
"""Metrics by how the confidence was read."""
COLUMNS = [
    ("accuracy", "raw", "accuracy"),
    ("ECE", "raw", "ece"),
    ("NLL", "raw", "nll"),
    ("Brier", "raw", "brier"),
    ("ECE, own T", "calibrated", "ece"),
    ("NLL, own T", "calibrated", "nll"),
    ("Brier, own T", "calibrated", "brier"),
    ("AUROC", "calibrated", "auroc"),
    ("AURC", "calibrated", "aurc"),
    ("surest 25 %", "calibrated", "accuracy_at_25"),
]
DIFFERENCES = [
    ("accuracy", "raw_difference", "accuracy"),
    ("ECE", "raw_difference", "ece"),
    ("NLL", "raw_difference", "nll"),
    ("ECE, own T", "calibrated_difference", "ece"),
    ("NLL, own T", "calibrated_difference", "nll"),
    ("Brier, own T", "calibrated_difference", "brier"),
    ("AURC", "calibrated_difference", "aurc"),
    ("surest 25 %", "calibrated_difference", "accuracy_at_25"),
]


def table(test_set: str, models: dict[str, Measured]) -> str:
    """Markdown: each model's values with intervals, and its differences from the reference."""
    others = {name: found for name, found in models.items() if name != REFERENCE}
    return "\n\n".join(
        [
            f"**{test_set}**",
            rows(models, COLUMNS, ".3f"),
            f"less `{REFERENCE}`:",
            rows(others, DIFFERENCES, "+.3f"),
        ]
    )


def rows(models: dict[str, Measured], columns: list[tuple[str, str, str]], style: str) -> str:
    lines = [
        "| model | " + " | ".join(title for title, *_ in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for name, found in models.items():
        cells = [interval(found[kind][metric], style) for _, kind, metric in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def interval(found: Estimate, style: str = ".3f") -> str:
    text = f"{found.value:{style}} ({found.low:{style}} to {found.high:{style}})"
    return text.replace("-", "−")
