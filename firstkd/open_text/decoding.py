"""Text from a causal language model: transformers' `generate` with its KV cache, batched by length.

If token probabilities are requested, they come from the hidden states that `generate` computes
anyway, run through the head again in float32, without temperature or noise.

Legend: B prompts, L tokens of the longest, T tokens written, N of these up to each text's end,
H hidden size.

Draws use the Gumbel-max trick with noise seeded per prompt: a prompt gets the same draw in any
batch, on every run with the same settings.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from firstkd.measure.ranking import Floats
from firstkd.memory import memory_explained
from firstkd.models.folders import device_of, number_of_rows, vocabulary_size
from firstkd.models.scoring import ScoringHead


@dataclass(frozen=True)
class Draw:
    """One continuation to draw for a prompt."""

    prompt: Sequence[int]
    temperature: float
    """0 for the most probable token at each position."""
    number: int
    """Number among the draws of the same prompt."""
    seed: int

    def noise(self) -> torch.Generator:
        told = json.dumps([self.seed, self.number, [*self.prompt]]).encode()
        return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(told).digest()[:8]))


@dataclass(frozen=True)
class Text:
    """A continuation of a prompt."""

    ids: list[int]
    """Up to and including the token that ends it, or up to the length limit."""
    probabilities: Floats
    """The model's probability of each token, whatever temperature it was drawn at; empty without a
    head to compute them."""


@memory_explained("while writing answers")
@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    draws: Sequence[Draw],
    stop: Set[int],
    max_new_tokens: int,
    batch_size: int,
    batch_tokens: int,
    title: str = "",
    head: ScoringHead | None = None,
) -> list[Text]:
    """Return each prompt's continuation, up to one of `stop`, with probabilities if given a `head`.

    Batches have at most `batch_size` prompts and `batch_tokens` tokens, including padding and
    those to be written. With a title, it shows progress. Raises OutOfMemoryError.
    """
    found: dict[int, Text] = {}
    with (
        _only_our_settings(model),
        tqdm(total=len(draws), desc=title, unit="answer", disable=not title) as progress,
    ):
        for index in _batches(draws, max_new_tokens, batch_size, batch_tokens):
            texts = _continued(model, head, [draws[i] for i in index], stop, max_new_tokens)
            found.update(zip(index, texts, strict=True))
            progress.update(len(index))
    return [found[i] for i in range(len(draws))]


def _batches(
    draws: Sequence[Draw], max_new_tokens: int, batch_size: int, batch_tokens: int
) -> list[list[int]]:
    """Return indices in batches of similar length, longest first."""
    batches: list[list[int]] = []
    for i in sorted(range(len(draws)), key=lambda i: (-len(draws[i].prompt), i)):
        longest = len(draws[batches[-1][0]].prompt) + max_new_tokens if batches else 0
        full = not batches or len(batches[-1]) == batch_size
        if full or (len(batches[-1]) + 1) * longest > batch_tokens:
            batches.append([])
        batches[-1].append(i)
    return batches


def _continued(
    model: PreTrainedModel,
    head: ScoringHead | None,
    draws: Sequence[Draw],
    stop: Set[int],
    max_new_tokens: int,
) -> list[Text]:
    length = max(len(draw.prompt) for draw in draws)
    ids_BL = torch.zeros(len(draws), length, dtype=torch.int64)
    mask_BL = torch.zeros_like(ids_BL)
    for row, draw in enumerate(draws):  # padded on the left: new tokens follow the prompt
        ids_BL[row, length - len(draw.prompt) :] = torch.tensor(draw.prompt)
        mask_BL[row, length - len(draw.prompt) :] = 1
    tokens = vocabulary_size(model)
    padding = range(tokens, number_of_rows(model.get_output_embeddings().weight))
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(stop),
        pad_token_id=min(stop),  # after the end, and cut off again
        suppress_tokens=[*padding] or None,
    )
    generate: Any = model.generate
    with _last_states(model) as hidden_TBH:
        written: Tensor = generate(
            ids_BL.to(device_of(model)),
            attention_mask=mask_BL.to(device_of(model)),
            generation_config=settings,
            logits_processor=LogitsProcessorList([_Noise(draws)]),
        )
    return _texts(head, written[:, length:], hidden_TBH, stop)


def _texts(
    head: ScoringHead | None, written_BT: Tensor, hidden_TBH: Sequence[Tensor], stop: Set[int]
) -> list[Text]:
    """Cut each text off at its end, and score it if there is a head."""
    ended_BT = torch.isin(written_BT, torch.tensor([*stop], device=written_BT.device))
    is_kept_BT = ended_BT.cumsum(1) - ended_BT.long() == 0
    ids_N, lengths = written_BT[is_kept_BT], is_kept_BT.sum(1).tolist()
    if head is None:
        return [Text(ids.tolist(), np.empty(0)) for ids in ids_N.split(lengths)]
    hidden_NH = torch.stack([*hidden_TBH], 1)[is_kept_BT]
    rows_N = torch.arange(len(ids_N), device=ids_N.device)
    none = rows_N[:0]
    scores = head(hidden_NH, rows_N, ids_N, none, none[:, None])
    probability_N = scores.logprobs_M.double().exp().cpu()
    each = zip(ids_N.split(lengths), probability_N.split(lengths), strict=True)
    return [Text(ids.tolist(), np.asarray(found.numpy())) for ids, found in each]


@contextmanager
def _last_states(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Collect the hidden states [B, H] that predict the next token, one step at a time."""
    found: list[Tensor] = []

    def keep(_: Any, __: Any, output: Any) -> None:
        # a model spread over devices returns states on its last layer's device
        found.append(output.last_hidden_state[:, -1].to(device_of(model)))

    hook = model.base_model.register_forward_hook(keep)
    try:
        yield found
    finally:
        hook.remove()


class _Noise(LogitsProcessor):
    """Makes the largest score a sample from the softmax at each draw's temperature.

    The arg max of log p / T plus Gumbel noise is a sample (Maddison, Tarlow and Minka 2014).
    """

    def __init__(self, draws: Sequence[Draw]) -> None:
        self._rows = [
            (row, draw.temperature, draw.noise())
            for row, draw in enumerate(draws)
            if draw.temperature > 0
        ]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        for row, temperature, generator in self._rows:
            gumbel = -torch.empty(scores.shape[-1]).exponential_(generator=generator).log()
            scores[row] = scores[row] / temperature + gumbel.to(scores)
        return scores


@contextmanager
def _only_our_settings(model: PreTrainedModel) -> Iterator[None]:
    """Keep a model's own defaults, such as a repetition penalty, out of `generate`."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
