import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.calibration import _SigmoidCalibration

from firstkd.errors import ArtifactError
from firstkd.measure.metrics import expected_calibration_error
from firstkd.recalibration.adaptive_temperature import AdaptiveTemperature
from firstkd.recalibration.isotonic import Isotonic
from firstkd.recalibration.label_smoothing import LabelSmoothing
from firstkd.recalibration.none import Identity
from firstkd.recalibration.paper import Paper
from firstkd.recalibration.platt import Platt
from firstkd.recalibration.search import minimise_over_log
from firstkd.recalibration.settings import CalibrateSettings
from firstkd.recalibration.table import RECALIBRATIONS, from_json, to_json
from firstkd.recalibration.temperature import Temperature, temperature_interval
from firstkd.recalibration.vocabulary_temperature import VocabularyTemperature
from firstkd.signals.knowledge import Knowledge
from firstkd.signals.top_k import knowledge_of
from tests.tiny import REPOSITORY

SETTINGS = CalibrateSettings(criterion="nll", max_temperature=20.0, bootstrap_samples=100)
ONE_TO_ONE = ("platt", "isotonic")  # these rescale the top against the rest


def overconfident(temperature: float, size: int = 20_000) -> tuple[Knowledge, torch.Tensor]:
    """Decisions without a tail whose answers were drawn from the same logits over `temperature`.

    With them, what is right.
    """
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(size, 5)) * 4
    honest = torch.tensor(logits / temperature).softmax(-1).numpy()
    answer = (honest.cumsum(-1) > generator.random((size, 1))).argmax(-1)
    decisions = Knowledge.of_choices(torch.tensor(logits).log_softmax(-1), torch.tensor(answer))
    return decisions, torch.tensor(np.arange(5) == answer[:, None])


def decisions_of(probabilities: torch.Tensor) -> Knowledge:
    """Of candidates [R, K]; the tail is what they lack to 1."""
    tail_mass = (1 - probabilities.sum(-1)).clamp_min(0)
    return Knowledge(
        top_ids=torch.arange(probabilities.shape[1]).expand(len(probabilities), -1),
        top_logprobs=probabilities.log(),
        log_tail_mass=tail_mass.log(),
        gold_logprob=probabilities[:, 0].log(),
        tail_bends=torch.empty(len(probabilities), 0),
        vocabulary_size=1000,
    )


def apply(recalibration, probabilities):
    return recalibration.apply(decisions_of(torch.tensor(probabilities, dtype=torch.float64)))


@pytest.mark.parametrize("true_temperature", [0.7, 1.0, 2.5])
def test_the_temperature_of_synthetic_data_is_found(true_temperature):
    fitted = Temperature.fit(*overconfident(true_temperature), SETTINGS)
    assert fitted.temperature == pytest.approx(true_temperature, rel=0.02)


def test_the_ece_criterion_finds_a_temperature_that_makes_confidence_honest():
    decisions, is_right = overconfident(2.5)
    settings = SETTINGS.model_copy(update={"criterion": "ece"})
    after = Temperature.fit(decisions, is_right, settings).apply(decisions)
    confidence, top = after.max(-1)
    correct = is_right.gather(-1, top[:, None])[:, 0]
    assert float(confidence.mean()) == pytest.approx(float(correct.double().mean()), abs=0.02)


def test_the_interval_of_a_temperature_holds_it_and_shrinks_with_the_data():
    few, many = interval(*overconfident(2.5, size=400)), interval(*overconfident(2.5, size=6_400))
    assert few.low < 2.5 < few.high and many.low < 2.5 < many.high
    assert (many.high - many.low) / (few.high - few.low) == pytest.approx(0.25, abs=0.1)


def test_the_interval_of_a_temperature_is_that_of_refitted_samples():
    decisions, is_right = overconfident(2.5, size=400)
    found = interval(decisions, is_right)
    draw = np.random.default_rng(3)
    refitted = []
    for _ in range(200):
        rows = torch.from_numpy(draw.integers(400, size=400))
        refitted.append(Temperature.fit(decisions[rows], is_right[rows], SETTINGS).temperature)
    width = np.subtract(*np.percentile(refitted, [97.5, 2.5]))
    assert found.high - found.low == pytest.approx(width, rel=0.25)


@pytest.mark.parametrize("criterion", ["nll", "ece"])
def test_whole_examples_are_drawn_not_their_tokens(criterion):
    """Four tokens of each example that say the same are worth one, not four."""
    settings = SETTINGS.model_copy(update={"criterion": criterion, "bootstrap_samples": 400})
    decisions, is_right = overconfident(2.5, size=300)
    example = torch.arange(300).repeat_interleave(4)
    once = interval(decisions, is_right, settings=settings)
    repeated = decisions[example], is_right[example]
    together = interval(*repeated, example.numpy(), settings)
    alone = interval(*repeated, settings=settings)
    assert (together.low, together.high) == pytest.approx((once.low, once.high), rel=1e-9)
    assert alone.high - alone.low < 0.8 * (together.high - together.low)


def interval(decisions, is_right, example=None, settings=SETTINGS):
    fitted = Temperature.fit(decisions, is_right, settings)
    example = np.arange(len(is_right)) if example is None else example
    return temperature_interval(fitted, decisions, is_right, example, settings, seed=0)


def test_a_search_is_not_misled_by_steps_and_plateaus():
    def steps(x):
        return 0.0 if 2.9 < x < 3.1 else 1.0 if x < 15 else 0.5

    assert 2.9 < minimise_over_log(steps, 0.05, 20.0) < 3.1
    assert minimise_over_log(lambda x: (np.log(x) - 1) ** 2, 0.05, 20.0) == pytest.approx(
        np.e, rel=2e-5
    )
    assert minimise_over_log(lambda x: x, 0.05, 20.0) == 0.05
    assert minimise_over_log(lambda x: -x, 0.05, 20.0) == 20.0


def test_the_ece_criterion_finds_the_lowest_step():
    """On 60 decisions the ECE has hundreds of steps and many local minima."""
    decisions, is_right = overconfident(2.5, size=60)
    settings = SETTINGS.model_copy(update={"criterion": "ece"})
    fitted = Temperature.fit(decisions, is_right, settings)
    once = np.ones((1, 60))

    def error(temperature):
        return float(Temperature(temperature)._loss(decisions, is_right, settings, once)[0])

    dense = min(error(float(t)) for t in np.geomspace(0.05, 20, 3_000))
    assert error(fitted.temperature) <= dense + 0.005


@pytest.mark.parametrize("criterion", ["nll", "ece"])
@pytest.mark.parametrize("right", [True, False])
def test_a_temperature_of_decisions_that_are_all_right_or_all_wrong_is_at_its_bound(
    right, criterion
):
    decisions, _ = overconfident(2.0, size=200)
    settings = SETTINGS.model_copy(update={"criterion": criterion})
    is_top = torch.arange(5) == decisions.top_logprobs.argmax(-1, keepdim=True)
    is_right = is_top if right else is_top.roll(1, dims=-1)
    fitted = Temperature.fit(decisions, is_right, settings)
    assert fitted.temperature == (0.05 if right else 20.0)
    assert fitted.at_bound(settings) == fitted.temperature
    ordinary = Temperature.fit(*overconfident(2.0, size=200), settings)
    assert ordinary.at_bound(settings) is None


def mixed(size: int) -> tuple[Knowledge, torch.Tensor]:
    """Decisions of which every other one is hesitant, and honest; the rest are too sure."""
    sure, right_of_sure = overconfident(4.0, size)
    hesitant = torch.arange(size) % 2 == 1
    draw = np.random.default_rng(1)
    flat = torch.tensor(draw.normal(size=(size, 5)) * 0.7).log_softmax(-1)
    answer = torch.tensor((flat.exp().cumsum(-1).numpy() > draw.random((size, 1))).argmax(-1))
    logprobs = torch.where(hesitant[:, None], flat, sure.top_logprobs)
    right = torch.where(hesitant[:, None], torch.arange(5) == answer[:, None], right_of_sure)
    return Knowledge.of_choices(logprobs, right.int().argmax(-1)), right


def test_decisions_that_look_different_get_temperatures_of_their_own():
    decisions, is_right = mixed(4_000)
    fitted = AdaptiveTemperature.fit(decisions, is_right, SETTINGS)
    temperatures = fitted.temperatures(decisions)
    sure, hesitant = temperatures[::2].median(), temperatures[1::2].median()
    assert 3 < sure < 5 and 0.7 < hesitant < 1.4
    single = Temperature.fit(decisions, is_right, SETTINGS)
    unseen, right = (part[4_000:] for part in mixed(6_000))

    def nll(recalibration):
        return -recalibration.gold_probability(unseen, right).log().mean().item()

    assert nll(fitted) < nll(single) - 0.02


def test_few_decisions_that_need_one_temperature_get_one():
    decisions, is_right = overconfident(2.5, size=60)
    fitted = AdaptiveTemperature.fit(decisions, is_right, SETTINGS)
    expected = Temperature.fit(decisions, is_right, SETTINGS).temperature
    assert fitted.slopes == [0, 0]
    assert fitted.temperatures(decisions)[0].item() == pytest.approx(expected, rel=1e-3)


def test_an_adaptive_temperature_is_what_its_formula_says():
    """By loops, with a missing candidate and a tail; beyond three deviations nothing changes."""
    given = AdaptiveTemperature(0.3, [0.2, -0.4], [0.5, 2.0], [0.1, 3.0], max_temperature=20.0)
    rows = torch.tensor([[0.5, 0.2, 0.1], [0.9, 0.05, 0.0], [0.3, 0.3, 0.3]]).double()
    after = apply(given, rows.tolist())
    for row, found in zip(rows.tolist(), after, strict=True):
        p = [value / sum(row) for value in row if value]
        entropy = -sum(value * np.log(value) for value in p) / np.log(len(p))
        margin = np.log(p[0] / p[1])
        looks = np.clip([(entropy - 0.5) / 0.1, (margin - 2.0) / 3.0], -3, 3)
        temperature = np.exp(0.3 + looks @ [0.2, -0.4])
        powers = [value ** (1 / temperature) for value in p]
        expected = [sum(row) * power / sum(powers) for power in powers]
        np.testing.assert_allclose(found[: len(p)], expected, rtol=0, atol=1e-9)
        assert (found[len(p) :] == 0).all()


def test_kinds_are_named_as_they_are_listed():
    assert all(recalibration.kind == kind for kind, recalibration in RECALIBRATIONS.items())


def test_a_tail_of_which_only_the_mass_is_kept_has_no_vocabulary_temperature():
    decisions = decisions_of(torch.tensor([[0.5, 0.2]]))
    assert not VocabularyTemperature.supports(decisions)
    assert VocabularyTemperature.supports(replace(decisions, tail_bends=torch.zeros(1, 8)))
    assert VocabularyTemperature.supports(replace(decisions, vocabulary_size=2))
    assert all(
        recalibration.supports(decisions)
        for recalibration in RECALIBRATIONS.values()
        if recalibration is not VocabularyTemperature
    )


def test_what_is_right_in_the_tail_keeps_its_share_of_the_tail():
    decisions = replace(
        decisions_of(torch.tensor([[0.5, 0.2], [0.5, 0.2]]).double()),
        gold_logprob=torch.tensor([0.5, 0.1]).double().log(),
    )
    is_right = torch.tensor([[True, False], [False, False]])
    gold = Paper(1.0).gold_probability(decisions, is_right)
    top = np.exp(0.5) / (np.exp(0.5) + np.exp(0.2))
    torch.testing.assert_close(gold, torch.tensor([top, 0.0]).double())
    gold = Platt(slope=1.0, intercept=0.0).gold_probability(decisions, is_right)
    torch.testing.assert_close(gold, torch.tensor([0.5, 0.1]).double())


@pytest.mark.parametrize("name", ["temperature", *ONE_TO_ONE])
@pytest.mark.parametrize("true_temperature", [1.0, 2.5])
def test_after_fitting_the_ece_is_that_of_a_calibrated_sample(name, true_temperature):
    decisions, is_right = overconfident(true_temperature, size=3_000)
    fitted = RECALIBRATIONS[name].fit(decisions, is_right, SETTINGS)
    top = range(len(decisions)), decisions.top_logprobs.argmax(-1)  # the teacher's: it is fitted
    confidence, correct = fitted.apply(decisions)[top].numpy(), is_right[top].numpy()
    # what the same confidences show where they are right by definition: never quite 0
    draws = np.random.default_rng(1).random((500, len(confidence))) < confidence
    honest = [float(expected_calibration_error(confidence, drawn)[0]) for drawn in draws]
    assert float(expected_calibration_error(confidence, correct)[0]) <= np.percentile(honest, 97.5)


@pytest.mark.parametrize("name", ["temperature", *ONE_TO_ONE])
def test_more_confident_before_is_no_less_confident_after(name):
    fitted = RECALIBRATIONS[name].fit(*overconfident(2.5), SETTINGS)
    top = torch.linspace(0.25, 1, 200, dtype=torch.float64)[:, None]
    before = torch.cat([top, (1 - top).expand(-1, 4) / 4], dim=-1)
    after = fitted.apply(decisions_of(before))[:, 0]
    assert (after.diff() >= -1e-12).all()
    assert torch.isfinite(after).all()


@pytest.mark.parametrize("criterion", ["nll", "ece"])
def test_a_temperature_of_the_whole_vocabulary_is_found_from_what_is_kept(criterion):
    vocabulary, true_temperature = 2_000, 1.4
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4_000, vocabulary, generator=generator) * 2
    logits[:, :20] += torch.rand(4_000, 20, generator=generator) * 9
    gold = (logits / true_temperature).softmax(-1).multinomial(1, generator=generator)
    logprobs = logits.log_softmax(-1)
    gold_logprob = logprobs.gather(1, gold)[:, 0]
    decisions = replace(knowledge_of(logprobs, 5, 8), gold_logprob=gold_logprob)
    is_right = decisions.is_right(gold[:, 0])
    settings = SETTINGS.model_copy(update={"criterion": criterion})
    fitted = VocabularyTemperature.fit(decisions, is_right, settings)
    assert fitted.temperature == pytest.approx(true_temperature, rel=0.03)
    dense = (logits / fitted.temperature).softmax(-1)
    after = fitted.apply(decisions)
    torch.testing.assert_close(after, dense.gather(1, decisions.top_ids), atol=2e-3, rtol=0)
    of_gold = fitted.gold_probability(decisions, is_right)
    torch.testing.assert_close(of_gold, dense.gather(1, gold)[:, 0], atol=2e-3, rtol=0)


def test_without_a_tail_the_whole_vocabulary_is_the_candidates():
    decisions, is_right = overconfident(2.5, size=400)
    expected = Temperature.fit(decisions, is_right, SETTINGS)
    assert VocabularyTemperature.fit(decisions, is_right, SETTINGS) == expected


def test_temperature_one_is_the_identity_and_keeps_the_tail():
    given = [[0.5, 0.2, 0.1], [0.3, 0.2, 0.0]]
    torch.testing.assert_close(apply(Temperature(1.0), given), torch.tensor(given).double())
    after = apply(Temperature(3.0), given)
    torch.testing.assert_close(after.sum(-1), torch.tensor([0.8, 0.5]).double())
    assert after[1, 2] == 0


def test_paper_takes_probabilities_as_logits_so_its_confidence_is_capped():
    confidence = float(apply(Paper(0.5), [[1.0, 1e-30, 1e-30, 1e-30, 1e-30]]).max())
    assert confidence == pytest.approx(np.exp(2) / (np.exp(2) + 4))


def test_label_smoothing_leaves_a_candidate_alone_that_has_no_others():
    assert apply(LabelSmoothing(0.1), [[0.7, 0.0]])[0].tolist() == pytest.approx([0.7, 0])


def test_label_smoothing_moves_delta_from_the_top_to_the_others():
    smoothed = apply(LabelSmoothing(0.1), [[0.6, 0.2, 0.1, 0.05, 0.05]])
    expected = torch.tensor([[0.5, 0.225, 0.125, 0.075, 0.075]]).double()
    torch.testing.assert_close(smoothed, expected)


def test_platt_and_isotonic_share_what_the_top_leaves_as_it_was_shared():
    # odds of 4 to 1 become 2 to 1; the tail of 0.05 is rescaled with the others
    after = apply(Platt(slope=0.5, intercept=0.0), [[0.8, 0.1, 0.05]])
    torch.testing.assert_close(after, torch.tensor([[2 / 3, 1 / 6, 1 / 12]]).double())
    after = apply(Isotonic([0.6, 1.0], [0.2, 0.6]), [[0.8, 0.1, 0.1], [0.3, 0.3, 0.1]])
    expected = torch.tensor([[0.4, 0.3, 0.3], [0.2, 0.3 * 0.8 / 0.7, 0.1 * 0.8 / 0.7]])
    torch.testing.assert_close(after, expected.double())


def test_platt_agrees_with_scikit_learns_calibration():
    decisions, is_right = overconfident(2.5, size=2_000)
    top = decisions.top_logprobs.argmax(-1)
    right = is_right[range(len(top)), top]
    fitted = Platt.fit(decisions, is_right, SETTINGS)
    odds = torch.logit(decisions.top_logprobs.exp().amax(-1))
    expected = _SigmoidCalibration().fit(odds.numpy(), right.numpy()).predict(odds.numpy())
    after = fitted.apply(decisions)[range(len(top)), top]
    np.testing.assert_allclose(after, expected, atol=2e-3)


@pytest.mark.parametrize("name", RECALIBRATIONS)
def test_every_recalibration_keeps_missing_candidates_at_zero_and_survives_json(name):
    decisions, is_right = overconfident(2.0, size=400)
    logprobs = decisions.top_logprobs.clone()
    logprobs[:, -1] = -torch.inf
    gold = is_right[:, :-1].int().argmax(-1)
    decisions = Knowledge.of_choices(logprobs.log_softmax(-1), gold)
    fitted = RECALIBRATIONS[name].fit(decisions, is_right, SETTINGS)
    after = fitted.apply(decisions)
    assert (after[:, -1] == 0).all()
    torch.testing.assert_close(after.sum(-1), torch.ones(400, dtype=torch.float64))
    assert from_json(json.loads(json.dumps(to_json(fitted)))) == fitted


@pytest.mark.parametrize("name", RECALIBRATIONS)
def test_certain_and_lone_candidates_give_probabilities(name):
    fitted = RECALIBRATIONS[name].fit(*overconfident(2.0, size=400), SETTINGS)
    logprobs = torch.tensor([[0.0, -200.0], [0.0, -torch.inf], [-0.7, -0.7]])
    after = fitted.apply(Knowledge.of_choices(logprobs, torch.zeros(3, dtype=torch.int64)))
    assert torch.isfinite(after).all()
    assert (after >= 0).all() and (after.sum(-1) <= 1 + 1e-6).all()


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("name", ONE_TO_ONE)
def test_a_teacher_that_is_always_or_never_right_is_fitted_short_of_certainty(name, right):
    decisions, _ = overconfident(2.0, size=50)
    is_top = torch.arange(5) == decisions.top_logprobs.argmax(-1, keepdim=True)
    fitted = RECALIBRATIONS[name].fit(decisions, is_top & right, SETTINGS)
    after = fitted.apply(decisions)[is_top]
    assert ((after > 0.9) & (after < 1)).all() if right else ((after < 0.1) & (after > 0)).all()


def test_none_is_the_teacher_itself():
    torch.testing.assert_close(apply(Identity(), [[0.5, 0.2]]), torch.tensor([[0.5, 0.2]]).double())


def test_an_unknown_recalibration_is_refused():
    with pytest.raises(ArtifactError, match="isotonique"):
        from_json({"kind": "isotonique"})


def test_only_the_table_knows_the_kinds():
    """All models have a temperature of their own; of the others nothing else knows the class."""
    kinds = {recalibration.__module__ for recalibration in RECALIBRATIONS.values()}
    kinds -= {"firstkd.recalibration.temperature"}
    table = REPOSITORY / "firstkd/recalibration/table.py"
    for package in ("firstkd", "tasks", "flows"):
        for file in (REPOSITORY / package).rglob("*.py"):
            if file != table:
                text = file.read_text()
                assert not [kind for kind in kinds if f"from {kind} import" in text], file
                assert "isinstance(recalibration" not in text, file
