"""The test of drift against a plain computation of the same martingale, and against chance."""

import math
from random import Random

import numpy as np
import pytest

from firstkd.measure.exchangeability import BETTORS, BINS, Exchangeability


def plainly(reference: list[float], values: list[float], horizon: int, seed: int) -> float:
    """The capital of each bettor as a product over the whole history, then their mean."""
    draw, seen, ranks = Random(seed), list(reference), []
    for value in values:
        below = sum(other < value for other in seen)
        equal = sum(other == value for other in seen)
        ranks.append((below + draw.random() * (equal + 1)) / (len(seen) + 1))
        seen.append(value)
    places = [min(int(rank * BINS), BINS - 1) for rank in ranks]
    capitals = []
    for bettor in range(BETTORS):
        begun, capital = places[bettor * (horizon // BETTORS) :], 1.0
        for n, place in enumerate(begun):
            capital *= BINS * (begun[:n].count(place) + 1) / (n + BINS)
        capitals.append(capital)
    return math.log(sum(capitals) / BETTORS)


@pytest.mark.parametrize("count", [1, 39, 150])
def test_evidence_is_that_of_a_plain_computation(count: int) -> None:
    draw = Random(count)
    reference = [float(draw.randrange(9)) for _ in range(20)]
    values = [float(draw.randrange(3, 12)) for _ in range(count)]
    test = Exchangeability(reference, horizon=160, seed=5)
    for value in values:
        test.add(value)
    assert test.log_evidence == pytest.approx(plainly(reference, values, 160, seed=5), abs=1e-9)


@pytest.mark.parametrize("ties", [False, True])
def test_it_ever_errs_at_most_as_often_as_it_says(ties: bool) -> None:
    """200 streams like their reference, looked at after every value, at a rate of 10 %."""
    draw, alarms = np.random.default_rng(1), 0
    for stream in range(200):
        values = draw.normal(size=340)
        values = np.round(values) if ties else values
        test = Exchangeability(values[:40].tolist(), horizon=300, seed=stream)
        highest = 0.0
        for value in values[40:].tolist():
            test.add(value)
            highest = max(highest, test.log_evidence)
        alarms += highest >= math.log(10)
    assert alarms <= 32  # binomial, 200 × 10 %: more has a probability of 0.3 %


@pytest.mark.parametrize("change", [0, 600])
def test_a_shift_is_found_whenever_it_comes(change: int) -> None:
    draw = np.random.default_rng(2)
    test = Exchangeability(draw.normal(size=175).tolist(), horizon=2000, seed=0)
    for value in draw.normal(size=change).tolist():
        test.add(value)
    assert test.log_evidence < math.log(100)
    for value in draw.normal(loc=1.0, size=300).tolist():
        test.add(value)
    assert test.log_evidence > math.log(300)
