import pytest
import torch

from firstkd.data.prompts import Question
from firstkd.errors import ArtifactError
from firstkd.models.folders import load_model
from firstkd.models.neurons import (
    feed_forwards,
    keep_neurons,
    logits_of_neurons,
    neuron_influence,
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
        with pytest.raises(ArtifactError, match=rf"{family}: not one feed-forward block"):
            feed_forwards(model)
        return
    before = model.num_parameters()
    influence = neuron_influence(model, QUESTIONS, 3)
    kept = [layer[:-1].topk(9).indices.sort().values for layer in influence]
    probe = torch.tensor([[5, 9, 12, 33, 7]])
    model.double()  # in float32, sums over fewer neurons in another order differ
    expected = logits_of_neurons(model, kept, probe).float()
    of_others = logits_of_neurons(model, [neurons + 1 for neurons in kept], probe)
    keep_neurons(model, kept)
    model.float().save_pretrained(tmp_path)
    again = load_model(tmp_path, "fp32").eval()
    assert again.config.intermediate_size == 9
    assert again.num_parameters() == model.num_parameters() < before
    found = again.double()(input_ids=probe, use_cache=False).logits.float()
    check_same_logits(expected, found, family)
    with pytest.raises(ArtifactError, match=f"{family}: the pruned model's logits differ by"):
        check_same_logits(of_others, found, family)


def test_influence_is_what_a_neuron_adds_whatever_the_padding(tiny_model):
    model = load_model(tiny_model, "fp32").eval()
    texts = [[*q.prompt, *q.responses[0]] for q in QUESTIONS]
    questions = [q.gold_only() for q in QUESTIONS]
    added = []
    block = feed_forwards(model)[1]
    hook = block.down_proj.register_forward_pre_hook(lambda _, given: added.append(given[0][0]))
    for text in texts:
        model(input_ids=torch.tensor([text]), use_cache=False)
    hook.remove()
    outputs = torch.cat(added)[:, :, None] * block.down_proj.weight.T  # tokens, neurons, hidden
    expected = outputs.double().square().sum(-1).mean(0).sqrt()
    for size in (1, 3):
        found = neuron_influence(model, questions, size)[1]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


def test_a_neuron_that_says_nothing_goes_first(tiny_model):
    model = load_model(tiny_model, "fp32")
    feed_forwards(model)[0].down_proj.weight.data[:, 5] = 0
    assert int(neuron_influence(model, QUESTIONS, 3)[0].argmin()) == 5
