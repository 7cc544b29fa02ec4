import pytest
import torch

from firstkd.data.prompts import Question
from firstkd.errors import ArtifactError
from firstkd.models import neurons
from firstkd.models.folders import load_model
from firstkd.models.neurons import (
    DAMPING,
    activation_products,
    choose_neurons,
    feed_forwards,
    keep_neurons,
    logits_of_neurons,
    refit_neurons,
    stand_ins,
)
from firstkd.models.pruning import check_same_logits
from tests.firstkd.models.families import FAMILIES, tiny_model

QUESTIONS = [Question(str(i), [4 + i, 9, 12], [[20 + i, 7], [30]], 0) for i in range(3)]
# experts, matrices that are one or two, or layers of several kinds
REFUSED = {
    *("bloom", "falcon", "gpt2", "gpt_neox", "gpt_oss", "lfm2", "mamba", "mixtral", "opt"),
    *("phi3", "qwen3_moe", "qwen3_next"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_narrowed_right_or_refused_by_name(family, tmp_path):
    model = tiny_model(family)
    if family in REFUSED:
        with pytest.raises(
            ArtifactError, match=rf"{family}: not every layer has exactly one feed-forward block"
        ):
            feed_forwards(model)
        return
    before = model.num_parameters()
    chosen = choose_neurons(model, 9, QUESTIONS, 3)
    refit_neurons(model, chosen)
    kept = [layer.kept_K for layer in chosen]
    probe = torch.tensor([[5, 9, 12, 33, 7]])
    model.double()  # in float32, sums over fewer neurons in another order differ
    expected = logits_of_neurons(model, kept, probe).float()
    width = model.config.intermediate_size
    of_others = logits_of_neurons(model, [(places + 1) % width for places in kept], probe)
    keep_neurons(model, kept)
    model.float().save_pretrained(tmp_path)
    again = load_model(tmp_path, "fp32").eval()
    assert again.config.intermediate_size == 9
    assert again.num_parameters() == model.num_parameters() < before
    found = again.double()(input_ids=probe, use_cache=False).logits.float()
    check_same_logits(expected, found, family)
    with pytest.raises(ArtifactError, match=f"{family}: the pruned model's logits differ by"):
        check_same_logits(of_others, found, family)


def activations(model, layer: int) -> torch.Tensor:
    """What enters the last matrix of a layer's block, for each token of the questions."""
    found = []
    block = feed_forwards(model)[layer]
    hook = block.down_proj.register_forward_pre_hook(lambda _, given: found.append(given[0][0]))
    for question in QUESTIONS:
        text = [*question.prompt, *question.responses[0]]
        model(input_ids=torch.tensor([text]), use_cache=False)
    hook.remove()
    return torch.cat(found).detach()


@pytest.mark.parametrize("size", [1, 3])
def test_products_are_averages_over_tokens_whatever_the_padding(tiny_model, size):
    model = load_model(tiny_model, "fp32").eval()
    x = activations(model, 1).double()
    questions = [q.gold_only() for q in QUESTIONS]
    [products] = activation_products(model, [feed_forwards(model)[1]], questions, size)
    torch.testing.assert_close(products, x.T @ x / len(x), rtol=1e-5, atol=1e-8)


def fitted(x: torch.Tensor, weights: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Outgoing weights of the kept neurons by least squares over the activations themselves."""
    output, damping = x @ weights.T, (DAMPING * x.square().mean() * len(x)).sqrt()
    ridge = damping * torch.eye(len(kept)).double()
    return torch.linalg.lstsq(
        torch.cat([x[:, kept], ridge]), torch.cat([output, ridge @ weights[:, kept].T])
    ).solution.T


def test_neurons_that_stay_stand_in_for_the_others_as_well_as_they_can(tiny_model):
    model = load_model(tiny_model, "fp32").eval()
    x = activations(model, 1).double()
    weights = feed_forwards(model)[1].down_proj.weight.detach().double()
    found = stand_ins(x.T @ x / len(x), weights, 9)
    assert found.kept_K.tolist() == sorted(set(found.kept_K.tolist()))
    expected = fitted(x, weights, found.kept_K)
    torch.testing.assert_close(found.weights_HK, expected, rtol=1e-9, atol=1e-12)
    output = x @ weights.T
    missing = (output - x[:, found.kept_K] @ found.weights_HK.T).square().sum()
    assert found.unexplained == pytest.approx(float(missing / output.square().sum()))


def test_the_neuron_goes_that_the_others_can_best_do_without(tiny_model):
    """Compared with every other choice, each fitted by least squares."""
    model = load_model(tiny_model, "fp32").eval()
    x = activations(model, 1).double()
    weights = feed_forwards(model)[1].down_proj.weight.detach().double()
    width = weights.shape[1]
    costs = []
    for gone in range(width):
        kept = torch.tensor([i for i in range(width) if i != gone])
        change = weights.clone()
        change[:, kept] -= fitted(x, weights, kept)
        ridge = DAMPING * x.square().mean() * len(x)
        costs.append(float((x @ change.T).square().sum() + ridge * change.square().sum()))
    found = stand_ins(x.T @ x / len(x), weights, width - 1)
    assert costs.index(min(costs)) not in found.kept_K


def test_what_does_not_fit_into_memory_takes_several_passes(tiny_model, monkeypatch):
    model = load_model(tiny_model, "fp32")
    at_once = choose_neurons(model, 9, QUESTIONS, 3)
    monkeypatch.setattr(neurons, "PRODUCTS_BYTES", 1)
    for found, expected in zip(choose_neurons(model, 9, QUESTIONS, 3), at_once, strict=True):
        assert torch.equal(found.kept_K, expected.kept_K)
        assert torch.equal(found.weights_HK, expected.weights_HK)


def test_a_neuron_that_says_nothing_goes_first_and_a_block_that_says_nothing_stays_so(tiny_model):
    model = load_model(tiny_model, "fp32")
    first, second = feed_forwards(model)
    first.down_proj.weight.data[:, 5] = 0
    second.up_proj.weight.data.zero_()
    chosen = choose_neurons(model, model.config.intermediate_size - 1, QUESTIONS, 3)
    assert 5 not in chosen[0].kept_K
    assert chosen[0].unexplained == pytest.approx(0, abs=1e-9)
    old = second.down_proj.weight.detach().double()[:, chosen[1].kept_K]
    assert torch.equal(chosen[1].weights_HK, old)
    assert chosen[1].unexplained == 0
