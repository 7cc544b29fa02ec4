"""The shapes under a budget, against models of these shapes."""

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig

from firstkd.errors import ConfigError
from firstkd.models.search import STEP, Shape


def model(layers, width):
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        mlp_bias=True,
    )
    return AutoModelForCausalLM.from_config(config)


SHAPE = Shape.of(model(6, 128))


@pytest.mark.parametrize(("layers", "width"), [(6, 128), (3, 128), (6, 48), (2, 16)])
def test_parameters_are_those_of_a_model_of_the_shape(layers, width):
    assert SHAPE.parameters(layers, width) == model(layers, width).num_parameters()


def test_a_shape_is_as_wide_as_the_budget_allows():
    budget = SHAPE.parameters(4, 64) + 5
    for layers in range(1, 7):
        width = SHAPE.widest(layers, budget)
        assert width % STEP == 0 and width <= 128
        assert width == 0 or SHAPE.parameters(layers, width) <= budget
        assert width == 128 or SHAPE.parameters(layers, width + STEP) > budget
    assert SHAPE.widest(4, budget) == 64


def test_depths_are_those_that_fit():
    budget = SHAPE.parameters(4, STEP)
    assert SHAPE.depths(2, budget) == (2, 4)
    assert SHAPE.depths(1, SHAPE.parameters(6, 128)) == (1, 6)
    with pytest.raises(ConfigError, match=r"max_parameters: .* but 5 layers with 16 neurons"):
        SHAPE.depths(5, budget)
