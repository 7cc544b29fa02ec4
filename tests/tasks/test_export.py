"""What an export stage makes of a student's temperature."""

import pytest
import torch

from firstkd.errors import ConfigError
from firstkd.models.folders import load_model, load_tokenizer
from tasks.export import facts_of

CALIBRATION = {"temperature": 2.5, "prompt": {}, "choices": None, "policy": None}


@pytest.mark.parametrize("by_one_token", [True, False])
def test_the_temperature_is_in_the_weights_only_where_answers_are_one_token(
    tiny_model, by_one_token
):
    model, ids = load_model(tiny_model, "fp32"), torch.arange(3, 40)[None]
    before = model(ids).logits
    measured = {"sets": {"test": {"vocabulary": {}} if by_one_token else {}}}
    facts = facts_of(model, load_tokenizer(tiny_model), measured, CALIBRATION)
    folded = 2.5 if by_one_token else None
    assert (facts["folded_temperature"], facts["temperature"]) == (folded, 1 if folded else 2.5)
    torch.testing.assert_close(model(ids).logits, before / (folded or 1))


def test_a_student_without_a_temperature_is_refused_in_one_line(tiny_model):
    model, tokenizer = load_model(tiny_model, "fp32"), load_tokenizer(tiny_model)
    with pytest.raises(ConfigError, match=r"^the model has no temperature because [^\n]*$"):
        facts_of(model, tokenizer, {"sets": {}}, {**CALIBRATION, "temperature": None})
