"""How close an answer comes to the right one, from 0 to 1.

ROUGE is Google's `rouge-score` (with stemming; Lin 2004), BLEU (Papineni et al. 2002) and chrF
(Popović 2015) are sacrebleu's. Exact match and token F1 are SQuAD's (Rajpurkar et al. 2016, sec.
6.1): case, punctuation and articles are ignored. Over many answers, BLEU and chrF are computed from
summed counts, as published; the others are means.

Legend: E answers, K counts of each, S samples of a bootstrap (firstkd/measure/bootstrap.py).
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import numpy as np

from firstkd.measure.bootstrap import Counts, Floats, Statistic

MetricName = Literal["exact_match", "token_f1", "rouge_1", "rouge_2", "rouge_l", "chrf", "bleu"]
ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def words(text: str) -> list[str]:
    """Return a text's words as SQuAD compares them."""
    return ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split()


def exact_match(given: str, right: str) -> float:
    return float(words(given) == words(right))


def token_f1(given: str, right: str) -> float:
    """Return the harmonic mean of precision and recall of words; 1 if neither text has any."""
    ours, theirs = words(given), words(right)
    if not ours or not theirs:
        return float(ours == theirs)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs))


def _rouge(kind: str) -> Callable[[str, str], float]:
    return lambda given, right: float(_scorer(kind).score(right, given)[kind].fmeasure)


@cache
def _scorer(kind: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # imports NLTK, which takes seconds

    return RougeScorer([kind], use_stemmer=True)


@cache
def _corpus_metric(name: str) -> Any:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    # for single answers, BLEU counts only the n-gram orders that they have
    return {"bleu": BLEU(effective_order=True), "chrf": CHRF()}[name]


def _sentence(name: str) -> Callable[[str, str], float]:
    return lambda given, right: _corpus_metric(name).sentence_score(given, [right]).score / 100


METRICS: dict[MetricName, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "token_f1": token_f1,
    "rouge_1": _rouge("rouge1"),
    "rouge_2": _rouge("rouge2"),
    "rouge_l": _rouge("rougeL"),
    "chrf": _sentence("chrf"),
    "bleu": _sentence("bleu"),
}
"""Each compares an answer with the right one."""
OF_SUMS: tuple[MetricName, ...] = ("chrf", "bleu")


def of_each(metric: MetricName, given: Sequence[str], right: Sequence[str]) -> Floats:
    """Return the metric of each answer [E]."""
    return np.array([METRICS[metric](*pair) for pair in zip(given, right, strict=True)])


def statistic(given: Sequence[str], right: Sequence[str]) -> Statistic:
    """Return the function from counts [S, E], how often each answer is drawn, to all metrics."""
    means = {name: of_each(name, given, right) for name in METRICS if name not in OF_SUMS}
    sums = {name: _numbers(name, given, right) for name in OF_SUMS}

    def found(counts: Counts) -> dict[str, Floats]:
        size = counts.sum(-1)
        return {
            **{name: np.asarray(counts @ values / size) for name, values in means.items()},
            **{name: _scores(name, counts @ kept_EK) for name, kept_EK in sums.items()},
        }

    return found


def _numbers(name: str, given: Sequence[str], right: Sequence[str]) -> Floats:
    """Return the counts [E, K] that sacrebleu sums up."""
    return np.array(_corpus_metric(name)._extract_corpus_statistics(given, [right]), np.float64)


def _scores(name: str, sums_SK: Floats) -> Floats:
    score = _corpus_metric(name)._compute_score_from_stats
    return np.array([score(row).score / 100 for row in sums_SK.round().astype(int).tolist()])
