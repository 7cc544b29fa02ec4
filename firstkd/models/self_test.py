"""Is a model scored correctly? A self-test for any family, within seconds.

Masks, positions, heads and tokenizers differ between families, and a mismatch shows not as an
error but as wrong numbers. So two questions are scored twice: as everywhere in the pipeline, and by
a plain forward pass over each text.
"""

from collections.abc import Sequence
from typing import Any

import torch

from firstkd.data.prompts import Question
from firstkd.errors import ArtifactError
from firstkd.models.folders import device_of, vocabulary_size
from firstkd.models.scoring import score_questions

TOLERANCE = 1e-4
"""In nats. In float32, summing in another order changes scores by up to 2·10⁻⁵."""
PROBES = 2


def probes(questions: Sequence[Question]) -> list[Question]:
    """Return the few questions that decide the result of `check_model` for all of them."""
    if not questions:
        return []
    answered = [question for question in questions if question.responses]
    chosen = sorted(answered, key=lambda question: -len(question.prompt))[:PROBES]
    return [*chosen, max(questions, key=_largest_id), max(questions, key=_text_length)]


def check_model(model: Any, tokenizer: Any, questions: Sequence[Question]) -> None:
    """Raise ArtifactError unless the model scores its longest questions correctly.

    `model` is in float32. The ids and lengths of all questions are checked, and the two with the
    longest prompts are scored.
    """
    assert model.dtype == torch.float32
    family = model.config.model_type
    check_end_token(tokenizer, family)
    check_ids(model, questions, family)
    check_positions(model.config, questions)
    answered = [question for question in questions if question.responses]
    longest = sorted(answered, key=lambda question: -len(question.prompt))[:PROBES]
    if not longest:
        return
    scores = score_questions(model.eval(), longest, len(longest))
    differences = [
        abs(float(scores[i, c]) - plain_score(model, question.prompt, response))
        for i, question in enumerate(longest)
        for c, response in enumerate(question.responses)
    ]
    largest = float(torch.tensor(differences).max())  # NaN if one is, unlike Python's max
    if not largest <= TOLERANCE:
        raise ArtifactError(
            f"{family}: scores differ by {largest:.2g} nats from those of a plain forward "
            f"pass (limit {TOLERANCE:g}): this family's attention or head is not supported; "
            "choose another model"
        )


@torch.inference_mode()
def plain_score(model: Any, prompt: Sequence[int], response: Sequence[int]) -> float:
    """Mean log-probability of the response's tokens, from the model's own logits."""
    ids = torch.tensor([[*prompt, *response]], device=device_of(model))
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    logprobs = logits[:, : vocabulary_size(model)].float().log_softmax(-1)
    return float(logprobs[torch.arange(len(response)), list(response)].mean())


def check_end_token(tokenizer: Any, family: str) -> None:
    if tokenizer.eos_token_id is None:
        raise ArtifactError(
            f"{family}: the tokenizer has no end-of-text token; set eos_token in "
            "tokenizer_config.json"
        )


def check_ids(model: Any, questions: Sequence[Question], family: str) -> None:
    rows = len(model.get_input_embeddings().weight)
    for question in questions:
        if (largest := _largest_id(question)) >= rows:
            raise ArtifactError(
                f"{family}: example {question.id} has token id {largest}, but the model has "
                f"only {rows} embeddings: the tokenizer belongs to another model"
            )


def check_positions(config: Any, questions: Sequence[Question]) -> None:
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None or not questions:
        return
    lengths = [_text_length(question) for question in questions]
    if max(lengths) > limit:
        name = questions[lengths.index(max(lengths))].id
        raise ArtifactError(
            f"{config.model_type}: example {name} has {max(lengths)} tokens, but the model has "
            f"{limit} positions; set prompt.max_length to {limit}"
        )


def _largest_id(question: Question) -> int:
    return max(max(ids, default=0) for ids in (question.prompt, *question.responses))


def _text_length(question: Question) -> int:
    return len(question.prompt) + max(map(len, question.responses), default=0)
