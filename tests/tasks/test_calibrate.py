import numpy as np
import pytest
import torch

from firstkd.errors import DataValidationError
from firstkd.recalibration.isotonic import Isotonic
from firstkd.recalibration.none import Identity
from firstkd.recalibration.settings import CalibrateSettings
from firstkd.recalibration.temperature import Temperature
from firstkd.signals.knowledge import Knowledge
from tasks.calibrate import FOLDS, Decisions, cross_fitted, folds

SETTINGS = CalibrateSettings(criterion="nll", max_temperature=20.0, bootstrap_samples=100)


def decisions(size: int, examples: int) -> Decisions:
    """Honest decisions, as many of each example."""
    draw = torch.Generator().manual_seed(0)
    logprobs = (torch.randn(size, 4, generator=draw) * 2).log_softmax(-1)
    gold = logprobs.exp().multinomial(1, generator=draw)[:, 0]
    knowledge = Knowledge.of_choices(logprobs, gold)
    ids = [f"q{number * examples // size}" for number in range(size)]
    return Decisions(knowledge, torch.arange(4) == gold[:, None], ids)


def test_folds_hold_whole_examples_and_are_of_equal_size_whatever_the_order() -> None:
    ids = [f"q{number // 3}" for number in range(300)]
    fold = folds(ids)
    assert all(len(set(fold[3 * i : 3 * i + 3])) == 1 for i in range(100))
    assert np.bincount(fold).tolist() == [60] * FOLDS
    assert folds(ids[::-1]).tolist() == fold[::-1].tolist()


def test_cross_fitting_takes_away_what_a_step_function_gains_in_sample() -> None:
    given = decisions(175, 175)
    fitted = Isotonic.fit(given.knowledge, given.is_right, SETTINGS)
    in_sample = given.predictions(fitted).values()
    crossed = cross_fitted(Isotonic, given, SETTINGS).values()
    honest = given.predictions(Identity()).values()  # which nothing can improve on
    assert in_sample["nll"] < honest["nll"] < crossed["nll"]


def test_what_fits_nothing_is_the_same_cross_fitted() -> None:
    given = decisions(100, 20)
    crossed = cross_fitted(Identity, given, SETTINGS).values()
    assert crossed == pytest.approx(given.predictions(Identity()).values())


def test_one_example_alone_is_refused() -> None:
    with pytest.raises(DataValidationError, match="only q0 has decisions of this kind"):
        cross_fitted(Temperature, decisions(10, 1), SETTINGS)
