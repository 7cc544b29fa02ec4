"""Metrics of texts against the libraries that others measure with."""

import numpy as np
import pytest
import sacrebleu
from torchmetrics.functional.text import squad

from firstkd.open_text.metrics import METRICS, of_each, statistic

GIVEN = ["In the den.", "a hive, in the hive", "", "under ground", "It lives in a cave!"]
RIGHT = ["in a den", "in a hive", "in a nest", "under the ground", "in the sea"]


@pytest.mark.parametrize(("given", "right"), [*zip(GIVEN, RIGHT, strict=True)])
def test_exact_match_and_f1_are_squads(given, right):
    answer = {"prediction_text": given, "id": "1"}
    known = {"answers": {"answer_start": [0], "text": [right]}, "id": "1"}
    found = squad([answer], [known])
    assert METRICS["exact_match"](given, right) == pytest.approx(float(found["exact_match"]) / 100)
    assert METRICS["token_f1"](given, right) == pytest.approx(float(found["f1"]) / 100)


def test_all_metrics_of_equal_texts_are_1_and_of_strange_ones_0():
    for name in METRICS:
        assert of_each(name, ["bees live in a hive"], ["bees live in a hive"])[0] == pytest.approx(
            1
        )
        assert of_each(name, ["xyz"], ["bees live in a hive"])[0] == pytest.approx(0, abs=1e-6)


def test_rouge_counts_words_without_their_endings():
    assert METRICS["rouge_1"]("bees living", "bee lives") == 1
    assert METRICS["rouge_l"]("a b x c", "a b c d") == pytest.approx(2 * 0.75 * 0.75 / 1.5)


def test_of_many_answers_bleu_and_chrf_are_sacrebleus():
    drawn = np.array([0, 0, 3, 4, 1])
    counts = np.stack([np.ones(5), np.bincount(drawn, minlength=5)]).astype(float)
    found = statistic(GIVEN, RIGHT)(counts)
    for row, places in enumerate([range(5), drawn]):
        given, right = [GIVEN[i] for i in places], [RIGHT[i] for i in places]
        bleu = sacrebleu.corpus_bleu(given, [right], use_effective_order=True).score
        assert found["bleu"][row] == pytest.approx(bleu / 100)
        assert found["chrf"][row] == pytest.approx(
            sacrebleu.corpus_chrf(given, [right]).score / 100
        )
        f1 = of_each("token_f1", given, right).mean()
        assert found["token_f1"][row] == pytest.approx(f1)
