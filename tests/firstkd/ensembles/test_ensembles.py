"""Every kind of ensemble, against what its definition says of plain forward passes."""

import pytest
import torch
from pydantic import TypeAdapter

from firstkd.data.prompts import Question
from firstkd.ensembles.curvature import curvature, precision_of_most_evidence
from firstkd.ensembles.kinds import KINDS, AnyEnsemble
from firstkd.errors import ConfigError
from firstkd.models.scoring import score_questions
from tests.firstkd.test_kinds import float64_model

SIZE, WIDTH = 60, 16
QUESTIONS = [
    Question(str(i), [4, 5 + i % 7], [[20 + i, 9], [30 + i], [40, 41, 42]][: 2 + i % 2], i % 2)
    for i in range(9)
]
UNANSWERED = Question("open", [4, 6], [], None)
SETTINGS = [
    ["a", "b"],
    {"kind": "dropout", "of": "a", "rate": 0.2, "draws": 40},
    {"kind": "swag", "of": ["a", "b", "c"], "draws": 40},
    {"kind": "laplace", "of": "a", "draws": 40},
]


def made(settings):
    return TypeAdapter(AnyEnsemble).validate_python(settings)


def models(count, dtype=torch.float32):
    """Models of nearly the same weights, as snapshots are."""
    found = [float64_model(SIZE, seed=0).to(dtype) for _ in range(count)]
    for number, model in enumerate(found):
        generator = torch.Generator().manual_seed(number)
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
            weight.data += 0.02 * noise
    return found


def scores(model):
    return score_questions(model, QUESTIONS, 4)


def of_passes(ensemble, networks, fitted=None, seed=3):
    passes = ensemble.passes(networks, fitted, seed)
    return torch.stack([scores(networks[i]) for i in passes])


def test_every_kind_is_tested():
    assert {type(made(settings)) for settings in SETTINGS} == {*KINDS}


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_passes_repeat_and_leave_the_models_as_they_were(settings):
    ensemble = made(settings)
    networks = models(len(ensemble.models))
    before = [scores(network) for network in networks]
    fitted = ensemble.fit(networks, QUESTIONS, 4)
    first = of_passes(ensemble, networks, fitted)
    assert torch.equal(first, of_passes(ensemble, networks, fitted))
    assert all(torch.equal(scores(n), b) for n, b in zip(networks, before, strict=True))
    assert len(first) == getattr(ensemble, "draws", 2)
    assert first[:, 0, :2].std(0).max() > 1e-4  # its passes differ
    if hasattr(ensemble, "draws"):
        assert not torch.equal(first, of_passes(ensemble, networks, fitted, seed=99))


def test_a_deep_ensemble_is_its_members():
    networks = models(2)
    found = of_passes(made(["a", "b"]), networks)
    assert torch.equal(found, torch.stack([scores(network) for network in networks]))


def test_dropout_comes_before_every_matrix_of_the_layers_and_no_other():
    [model] = models(1)
    inputs = {}

    def record(name):
        return lambda _, given, output: inputs.update({name: given[0]})

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(record(name))
    ensemble = made({"kind": "dropout", "of": "a", "rate": 0.3, "draws": 2})
    for _ in ensemble.passes([model], None, 0):
        model(torch.tensor([[4, 5, 6, 7] * 8]))
    shares = {name: float((given == 0).float().mean()) for name, given in inputs.items()}
    assert len(shares) == 15
    for name, share in shares.items():
        assert share == (0 if name == "lm_head" else pytest.approx(0.3, abs=0.12)), name


def test_swag_draws_have_the_mean_and_the_spread_of_the_models():
    networks = models(3)
    ensemble = made({"kind": "swag", "of": ["a", "b", "c"], "draws": 600})
    place = "model.layers.0.mlp.down_proj.weight"
    own = torch.stack([dict(n.named_parameters())[place].detach()[0, :4] for n in networks])
    drawn = torch.stack(
        [
            dict(networks[0].named_parameters())[place].detach()[0, :4].clone()
            for _ in ensemble.passes(networks, None, 0)
        ]
    )
    torch.testing.assert_close(drawn.mean(0), own.mean(0), rtol=0, atol=4e-3)
    # half the population's variance from the diagonal, half the sample's from the deviations
    variance = (own.var(0, correction=0) + own.var(0)) / 2
    torch.testing.assert_close(drawn.var(0), variance, rtol=0.3, atol=0)


def test_swag_of_unlike_models_is_refused():
    networks = [float64_model(SIZE, 0), float64_model(SIZE, 0, layers=1)]
    with pytest.raises(ConfigError, match="of: b's weights do not match a's"):
        made({"kind": "swag", "of": ["a", "b"]}).check(networks)


def dense_curvature(model):
    """By torch.func, of each question's choices as plain texts."""
    total = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    for question in QUESTIONS:

        def scores_of(gains, question=question):
            found = []
            for response in question.responses:
                ids = torch.tensor([[*question.prompt, *response]])
                hidden = model.model(ids).last_hidden_state[0, len(question.prompt) - 1 : -1]
                logprobs = (model.lm_head(hidden.detach() * gains)).log_softmax(-1)
                found.append(logprobs.gather(-1, torch.tensor(response)[:, None]).mean())
            return torch.stack(found)

        ones = torch.ones(WIDTH, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(scores_of, ones)
        p = scores_of(ones).softmax(-1).detach()
        total += jacobian.T @ (p.diag() - p.outer(p)) @ jacobian
    return total


def test_the_curvature_is_the_gauss_newton_matrix_of_plain_passes():
    [model] = models(1, torch.float64)
    expected = dense_curvature(model)
    values, vectors = curvature(model, [*QUESTIONS, UNANSWERED], 4)
    found = vectors * values @ vectors.T
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_the_precision_is_that_of_the_largest_evidence():
    values = torch.tensor([5.0, 0.7, 0.02, 0.0], dtype=torch.float64)

    def evidence(precision):
        terms = precision.log() - precision - (values + precision).log()
        return terms.sum() / 2

    best = precision_of_most_evidence(values)
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert evidence(best) > evidence(best * factor)


def test_laplace_draws_have_the_covariance_of_the_curvature():
    [model] = models(1, torch.float64)
    ensemble = made({"kind": "laplace", "of": "a", "draws": 1000})
    root = ensemble.fit([model], QUESTIONS, 4)
    gains = []
    plain = model.model(torch.tensor([[4, 5]])).last_hidden_state[0, 0].detach()
    for _ in ensemble.passes([model], root, 0):
        with torch.no_grad():
            gains.append(model.model(torch.tensor([[4, 5]])).last_hidden_state[0, 0] / plain)
    gains = torch.stack(gains).double()
    values, vectors = torch.linalg.eigh(dense_curvature(model))
    precision = precision_of_most_evidence(values.clamp_min(0))
    along = (gains - 1) @ vectors
    expected = (values.clamp_min(0) + precision).rsqrt()
    torch.testing.assert_close(along.std(0), expected, rtol=0.15, atol=0)
