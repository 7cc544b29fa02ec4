"""What is shown for each model in the report, on the terminal and in comparisons of two."""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Column:
    """A metric as a column of a table."""

    title: str
    reading: Literal["raw", "calibrated", "text"]
    metric: str
    more_is_better: bool
    explanation: str

    def of(self, found: dict[str, Any]) -> dict[str, float]:
        """Return value, low and high of the metric on a test set."""
        cell: dict[str, float] = found[self.reading][self.metric]
        return cell


CORRECTNESS = (
    Column("accuracy", "raw", "accuracy", True, "share of questions answered right"),
    Column("NLL at T", "calibrated", "nll", False, "negative log-likelihood of the right answer"),
    Column("Brier at T", "calibrated", "brier", False, "squared error of the probabilities"),
    Column("ECE", "raw", "ece", False, "calibration error of the raw model, ten bins"),
    Column("ECE at T", "calibrated", "ece", False, "the same at the model's own temperature"),
)
RANKING = (
    Column(
        "AUROC",
        "calibrated",
        "auroc",
        True,
        "probability that a right answer is surer than a wrong one; 0.5 is pure chance",
    ),
    Column(
        "AURC",
        "calibrated",
        "aurc",
        False,
        "error rate averaged over all shares of questions answered, surest first",
    ),
    Column(
        "excess AURC",
        "calibrated",
        "excess_aurc",
        False,
        "AURC minus that of an equally accurate model whose right answers are all surer",
    ),
    Column("top 25 %", "calibrated", "accuracy_at_25", True, "accuracy on its surest quarter"),
    Column("top 50 %", "calibrated", "accuracy_at_50", True, "accuracy on its surest half"),
    Column(
        "top 75 %",
        "calibrated",
        "accuracy_at_75",
        True,
        "accuracy on its surest three quarters",
    ),
)
COLUMNS = CORRECTNESS + RANKING
TEXT = (
    Column("exact match", "text", "exact_match", True, "share of answers that match the right one"),
    Column("token F1", "text", "token_f1", True, "words shared with the right answer (SQuAD's F1)"),
    Column("ROUGE-1", "text", "rouge_1", True, "words shared, stemmed (F1)"),
    Column("ROUGE-2", "text", "rouge_2", True, "pairs of neighbouring words shared (F1)"),
    Column("ROUGE-L", "text", "rouge_l", True, "longest common subsequence of words (F1)"),
    Column("chrF", "text", "chrf", True, "character n-grams shared, over all answers combined"),
    Column("BLEU", "text", "bleu", True, "word n-grams shared, over all answers combined"),
)
"""For answers in the models' own words."""
