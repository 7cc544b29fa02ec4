"""Random models at any width, and the rates at which they learn."""

from copy import deepcopy

import pytest
import torch
from transformers import GemmaConfig, LlamaConfig, StableLmConfig

from firstkd.data.packing import pack
from firstkd.data.prompts import Question
from firstkd.errors import ArtifactError, ConfigError
from firstkd.models.width import random_model, shape_at
from firstkd.terms.gold import Gold
from firstkd.train.groups import groups_of
from firstkd.train.player import Player

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
QUESTIONS = [
    Question(str(i), [4 + i % 5, 10 + i % 7], [[20 + i % 6, 30 + i % 9, 2]], 0) for i in range(16)
]
BATCH = pack(QUESTIONS, range(16))
IDS = torch.tensor([[*q.prompt, *q.responses[0]] for q in QUESTIONS])


def steps(model, groups, rate, count=4):
    """Return how the logits change in some steps of Adam."""
    optimizer = torch.optim.AdamW(
        [{**group, "lr": rate * group["rate"]} for group in groups], betas=(0.9, 0.95), eps=1e-40
    )
    player = Player(model, {"gold": Gold(kind="gold")}, {})
    before = model(IDS).logits.detach()
    for _ in range(count):
        optimizer.zero_grad()
        found = player(BATCH, {})["gold"]
        (found.total / found.units).backward()
        optimizer.step()
    return model(IDS).logits.detach() - before


def mup(model):
    return groups_of(Player(model, {}, {}), weight_decay=0.1)


def test_it_learns_what_the_table_of_the_paper_says():
    """Against the same model with the 1/m of the logits outside, in float64."""
    config = StableLmConfig(**SIZES)
    model = random_model(deepcopy(config), 32, 2, 8, seed=1).double()
    plain = random_model(deepcopy(config), 32, 2, None, seed=1).double()
    matrices = [p for name, p in plain.named_parameters() if "proj" in name]
    with torch.no_grad():
        for matrix in matrices:
            matrix /= 4**0.5
    torch.testing.assert_close(model(IDS).logits, plain(IDS).logits / 4, rtol=0, atol=1e-12)
    embedding = plain.get_input_embeddings().weight
    known = {*matrices, embedding}
    vectors = [p for p in plain.parameters() if p not in known]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "lr": 1e-2 / 4, "weight_decay": 0.1 * 4},
            {"params": [embedding], "lr": 1e-2, "weight_decay": 0.1},
            {"params": vectors, "lr": 1e-2, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
        eps=1e-40,
    )
    for _ in range(4):
        optimizer.zero_grad()
        logprobs = (plain(IDS).logits / 4)[:, 1:-1].log_softmax(-1)
        (-logprobs.gather(-1, IDS[:, 2:, None]).mean()).backward()
        optimizer.step()
    steps(model, mup(model), 1e-2)
    torch.testing.assert_close(model(IDS).logits, plain(IDS).logits / 4, rtol=0, atol=1e-9)


def test_what_a_step_changes_does_not_grow_with_the_width():
    """The coordinate check (Yang et al. 2022, appendix D.1)."""
    changes = {}
    for base in (32, None):
        for width in (32, 512):
            model = random_model(LlamaConfig(**SIZES), width, 2, base, seed=1)
            changes[base, width] = steps(model, mup(model), 3e-3).abs().mean()
    assert changes[32, 32] == changes[None, 32]  # at the base width it is the plain model
    assert 0.5 < changes[32, 512] / changes[32, 32] < 1.5
    assert changes[None, 512] / changes[None, 32] > 3


def test_heads_keep_their_size_and_layers_are_cut():
    model = random_model(LlamaConfig(**SIZES), 48, 2, None, seed=1)
    config = model.config
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (48, 96, 2)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (6, 3, 8)
    assert model(IDS).logits.isfinite().all()
    again, other = (random_model(LlamaConfig(**SIZES), 48, 2, None, seed=s) for s in (1, 2))
    weights = [each.get_input_embeddings().weight for each in (model, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_width_without_whole_heads_is_refused():
    with pytest.raises(
        ConfigError, match=r"hidden_size: 40 would need fractions of heads .* of 16"
    ):
        shape_at(LlamaConfig(**SIZES), 40)


def test_a_family_whose_last_norm_scales_otherwise_is_refused():
    with pytest.raises(
        ArtifactError,
        match=r"gemma: scaling its last norm does not scale its .* set base_width",
    ):
        random_model(GemmaConfig(**SIZES, head_dim=8), 64, 2, 32, seed=1)


def test_without_a_base_width_there_are_the_two_groups_of_always():
    model = random_model(LlamaConfig(**SIZES), 32, 2, None, seed=1)
    decaying, others = groups_of(Player(model, {}, {}), weight_decay=0.1)
    assert decaying["weight_decay"] == 0.1 and others["weight_decay"] == 0.0
    assert all(p.ndim == 2 for p in decaying["params"])
    assert all(p.ndim == 1 for p in others["params"])
    assert decaying["rate"] == others["rate"] == 1
