import numpy as np
import pytest
import torch

from firstkd.errors import ArtifactError
from firstkd.recalibration import (
    RECALIBRATIONS,
    Identity,
    LabelSmoothing,
    Paper,
    Temperature,
    from_json,
    to_json,
)
from firstkd.settings import CalibrateSettings

SETTINGS = CalibrateSettings(criterion="nll", max_temperature=20.0)


def overconfident(temperature: float, size: int = 20_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities whose answers were drawn from the same logits divided by `temperature`."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(size, 5)) * 4
    honest = torch.tensor(logits / temperature).softmax(-1).numpy()
    answer = (honest.cumsum(-1) > generator.random((size, 1))).argmax(-1)
    return torch.tensor(logits).log_softmax(-1), torch.tensor(np.arange(5) == answer[:, None])


@pytest.mark.parametrize("true_temperature", [0.7, 1.0, 2.5])
def test_the_temperature_of_synthetic_data_is_found(true_temperature):
    fitted = Temperature.fit(*overconfident(true_temperature), SETTINGS)
    assert fitted.temperature == pytest.approx(true_temperature, rel=0.02)


def test_the_ece_criterion_finds_a_temperature_that_makes_confidence_honest():
    logprobs, is_right = overconfident(2.5)
    settings = CalibrateSettings(criterion="ece", max_temperature=20.0)
    after = Temperature.fit(logprobs, is_right, settings).apply(logprobs)
    confidence, top = after.max(-1)
    correct = is_right.gather(-1, top[:, None])[:, 0]
    assert float(confidence.mean()) == pytest.approx(float(correct.double().mean()), abs=0.02)


def test_temperature_one_is_the_identity_and_keeps_the_tail():
    logprobs = torch.tensor([[0.5, 0.2, 0.1], [0.3, 0.2, 0.0]]).log()
    torch.testing.assert_close(Temperature(1.0).apply(logprobs), logprobs.exp())
    torch.testing.assert_close(Temperature(3.0).apply(logprobs).sum(-1), torch.tensor([0.8, 0.5]))
    assert Temperature(3.0).apply(logprobs)[1, 2] == 0


def test_paper_takes_probabilities_as_logits_so_its_confidence_is_capped():
    certain = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0]]).clamp_min(1e-30).log()
    confidence = float(Paper(0.5).apply(certain).max())
    assert confidence == pytest.approx(np.exp(2) / (np.exp(2) + 4))


def test_label_smoothing_moves_delta_from_the_top_to_the_others():
    smoothed = LabelSmoothing(0.1).apply(torch.tensor([[0.6, 0.2, 0.1, 0.05, 0.05]]).log())
    torch.testing.assert_close(smoothed, torch.tensor([[0.5, 0.225, 0.125, 0.075, 0.075]]))


@pytest.mark.parametrize("name", RECALIBRATIONS)
def test_every_recalibration_keeps_missing_candidates_at_zero_and_survives_json(name):
    logprobs, is_right = overconfident(2.0, size=400)
    logprobs[:, -1] = -torch.inf
    fitted = RECALIBRATIONS[name].fit(logprobs.log_softmax(-1), is_right, SETTINGS)
    after = fitted.apply(logprobs.log_softmax(-1))
    assert (after[:, -1] == 0).all()
    torch.testing.assert_close(after.sum(-1), torch.ones(400, dtype=torch.float64))
    assert from_json(to_json(fitted)) == fitted


def test_none_is_the_teacher_itself():
    logprobs = torch.tensor([[0.5, 0.2]]).log()
    torch.testing.assert_close(Identity().apply(logprobs), torch.tensor([[0.5, 0.2]]))


def test_an_unknown_recalibration_is_refused():
    with pytest.raises(ArtifactError, match="isotonique"):
        from_json({"kind": "isotonique"})
