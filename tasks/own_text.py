"""The text that a student writes itself and learns from, if `on_policy` says so."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from firstkd.data.examples import Example
from firstkd.open_text.asking import open_questions, stop_tokens
from firstkd.open_text.on_policy import OwnText
from firstkd.settings import Settings


def own_text(
    settings: Settings,
    name: str,
    network: PreTrainedModel,
    tokenizer: Any,
    examples: Sequence[Example],
) -> OwnText:
    """Return the writer of a model's own responses to its training examples."""
    model, prompt = settings.models[name], settings.prompt
    assert model.on_policy is not None and model.train is not None
    training = settings.train[model.train]
    numbers = [i for i, example in enumerate(examples) if example.choices is None]
    asked = open_questions(
        [examples[i] for i in numbers], tokenizer, prompt, model.on_policy.max_new_tokens
    )
    return OwnText(
        model.on_policy,
        network,
        {i: question.prompt for i, question in zip(numbers, asked, strict=True)},
        stop_tokens(network, tokenizer, prompt),
        settings.runtime.seed,
        training.micro_batch_size,
        training.micro_batch_tokens,
    )
