"""A causal language model as a scorer of responses: from a packed batch to log-probabilities."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from firstkd.data.packing import BATCH_TOKENS, Batch, batches_by_length, pack, unpack
from firstkd.data.prompts import Question
from firstkd.memory import memory_explained
from firstkd.models.choice_scores import choice_scores
from firstkd.models.folders import device_of, vocabulary_size
from firstkd.models.head import (
    HeadScores,
    chunks,
    head_logits,
    head_scores,
    most_probable,
    widest,
    within,
)
from firstkd.models.layers import states_watched
from firstkd.models.masks import attention_masks, can_pack
from firstkd.models.needs import Place


class Pass(NamedTuple):
    """What a model's layers compute for a batch."""

    hidden_NH: Tensor
    """Last hidden states at the supervised positions."""
    at_places: dict[Place, Tensor]
    """By place, the activations [T, H] of all the batch's T tokens."""

    def detached(self) -> "Pass":
        """Return the same states without gradient."""
        return Pass(self.hidden_NH.detach(), {p: at.detach() for p, at in self.at_places.items()})


class ScoringHead(nn.Module):
    """The output embedding, returning a few log-probabilities instead of all logits.

    Rows that pad it beyond the tokenizer's ids stand for no token and get no probability. It is a
    separate module, called as one, so that code that hooks into modules (ZeRO, data parallelism)
    notices its use.
    """

    def __init__(self, model: Any, exact: bool) -> None:
        super().__init__()
        head, config = model.get_output_embeddings(), model.config
        self.vocabulary_size = vocabulary_size(model)
        weight, bias = head.weight, getattr(head, "bias", None)
        if exact:  # a copy, unless it is float32 already
            weight, bias = widest(weight), None if bias is None else widest(bias)
        self.weight: Tensor = weight
        self.bias: Tensor | None = bias
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self.scale: float = getattr(config, "logit_scale", None) or 1.0  # Cohere
        self.scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite

    def forward(
        self,
        hidden_NH: Tensor,
        rows_M: Tensor,
        targets_M: Tensor,
        decisions_R: Tensor,
        top: Tensor | int,
        asks_vocabulary: bool = False,
    ) -> HeadScores:
        """Score pairs and decisions; `top` is the decisions' ids [R, K], or how many to find."""
        hidden_NH, weight_VH, bias_V = self.operands(hidden_NH)
        if isinstance(top, int):
            top = most_probable(hidden_NH[decisions_R], weight_VH, bias_V, self.softcap, top)
        asked = rows_M, targets_M, decisions_R, top
        return head_scores(hidden_NH, weight_VH, *asked, bias_V, self.softcap, asks_vocabulary)

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Logits [N, V] in float32, for a few positions at a time."""
        return head_logits(*self.operands(hidden_NH), self.softcap)

    def operands(self, hidden_NH: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the arguments from which F.linear computes the logits, before the soft cap."""
        weight_VH = self.weight[: self.vocabulary_size]  # read once: rounding it takes a while
        hidden_NH = hidden_NH.to(weight_VH.dtype)
        bias_V = None if self.bias is None else self.bias[: self.vocabulary_size]
        if self.scale != 1:  # scales the logits; here only H numbers per position, not V
            hidden_NH = hidden_NH * self.scale
            bias_V = None if bias_V is None else bias_V * self.scale
        return hidden_NH, weight_VH, bias_V


class ResponseScorer(nn.Module):
    """Wraps a causal language model; its parameters are the model's own."""

    def __init__(self, model: PreTrainedModel, exact: bool = False) -> None:
        """`exact` makes the head compute in float32, for numbers that are stored.

        bfloat16 logits between 16 and 32 are 0.125 apart, which moves probabilities by up to 6 %.
        The float32 copy of a bfloat16 head takes 4 · V · H bytes (113 MB for the default model) as
        long as the scorer lives, and on a CPU without bfloat16 arithmetic its products take a
        fifth of the time. Training stays in bfloat16: on a random head of 49,152 × 576, single
        tokens are off by up to 0.03 nats, and their mean over 1,024 by 3·10⁻⁴.
        """
        super().__init__()
        self.backbone: Any = model.base_model
        self.head = ScoringHead(model, exact)
        takes_positions = "position_ids" in signature(self.backbone.forward).parameters
        self.can_pack = can_pack(model.config, model._is_stateful, takes_positions)

    @property
    def depth(self) -> int:
        """The last place where hidden states can be read (firstkd/models/layers.py)."""
        return int(self.backbone.config.num_hidden_layers)

    @property
    def width(self) -> int:
        return int(self.backbone.config.hidden_size)

    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden states [N, H] at the supervised positions."""
        return self.states(batch, ()).hidden_NH

    def states(self, batch: Batch, places: Sequence[Place]) -> Pass:
        """Run the layers, and keep the activations at `places`."""
        input_ids, place_of = batch.input_ids_BL, None
        more: dict[str, Any] = {}
        if batch.is_packed and self.can_pack:
            config, dtype = self.backbone.config, self.backbone.dtype
            masks = attention_masks(config, batch.segment_BL, batch.position_ids_BL, dtype)
            more = {"attention_mask": masks, "position_ids": batch.position_ids_BL}
        elif batch.is_packed:
            input_ids, place_of = unpack(batch)

        def at(states: Tensor, positions: Tensor) -> Tensor:
            states = states.flatten(0, 1).to(positions.device)  # a spread model's are elsewhere
            return states[positions if place_of is None else place_of[positions]]

        inner = [place for place in places if place != self.depth]
        with states_watched(self.backbone, inner) as found:
            last: Tensor = self.backbone(
                input_ids=input_ids, use_cache=False, **more
            ).last_hidden_state
        if self.depth in places:
            found[self.depth] = last
        if not places:
            return Pass(at(last, batch.positions_N), {})
        tokens_T = batch.is_token_BL.flatten().nonzero()[:, 0]
        seen = {place: at(found[place], tokens_T) for place in places}
        return Pass(at(last, batch.positions_N), seen)

    def forward(self, batch: Batch, top_ids_RK: Tensor | None = None) -> HeadScores:
        """Score the batch's M tokens, and `top_ids_RK` at each of the R tokens of right responses.

        Without `top_ids_RK` there are no decisions: R = 0.
        """
        decisions_R = batch.rows_M[batch.is_gold_M]
        if top_ids_RK is None:
            decisions_R, top_ids_RK = decisions_R[:0], decisions_R[:0, None]
        scores: HeadScores = self.head(
            self.hidden(batch), batch.rows_M, batch.targets_M, decisions_R, top_ids_RK
        )
        return scores


@memory_explained("while scoring questions")
@torch.inference_mode()
def score_questions(
    model: PreTrainedModel,
    questions: Sequence[Question],
    batch_size: int,
    title: str = "",
    batch_tokens: int = BATCH_TOKENS,
) -> Tensor:
    """Choice scores [E, C] in float32, −inf where a question has fewer choices.

    With a title, shows progress under it. Raises OutOfMemoryError.
    """
    scorer = ResponseScorer(model, exact=True).eval()
    num_choices = max(len(question.responses) for question in questions)
    scores_EC = torch.full((len(questions), num_choices), -torch.inf)
    for index, batch in _batches(model, questions, batch_size, title, batch_tokens):
        logprobs = scorer(batch).logprobs_M
        scores = choice_scores(logprobs, batch.response_of_M, batch.choice_mask_BC)
        scores_EC[index, : scores.shape[1]] = scores.cpu()
    return scores_EC


def _batches(
    model: PreTrainedModel,
    questions: Sequence[Question],
    batch_size: int,
    title: str,
    batch_tokens: int,
) -> Iterator[tuple[list[int], Batch]]:
    """Yield each batch, on the model's device, with its questions' indices."""
    batches = batches_by_length(questions, batch_size, batch_tokens)
    with tqdm(total=len(questions), desc=title, unit="question", disable=not title) as progress:
        for index in batches:
            yield index, pack(questions, index).to(device_of(model))
            progress.update(len(index))


@dataclass(frozen=True)
class TokenScores:
    """What a model predicts at each of T tokens of right responses, given what comes before."""

    confidence_T: Tensor
    """Probability of the most probable token."""
    correct_T: Tensor
    """True where that is the actual token."""
    probability_T: Tensor
    """Probability of the actual token."""
    example_T: Tensor
    """Index of the question whose response contains it."""


@memory_explained("while scoring tokens")
@torch.inference_mode()
def score_tokens(
    model: PreTrainedModel,
    questions: Sequence[Question],
    batch_size: int,
    title: str = "",
    batch_tokens: int = BATCH_TOKENS,
) -> TokenScores:
    """Score every token of the right responses, teacher-forced, in float32.

    With a title, shows progress under it. Raises OutOfMemoryError.
    """
    scorer = ResponseScorer(model, exact=True).eval()
    questions = [question.gold_only() for question in questions]
    parts = []
    for index, batch in _batches(model, questions, batch_size, title, batch_tokens):
        hidden = scorer.hidden(batch)
        for start, end in chunks(len(hidden)):
            inside = within(batch.rows_M, start, end)
            logprobs = scorer.head.logits(hidden[start:end]).log_softmax(-1)
            best, predicted = logprobs[batch.rows_M[inside] - start].max(-1)
            targets = batch.targets_M[inside]
            gold = logprobs[batch.rows_M[inside] - start, targets]
            # with one response per question, its number is the question's in the batch
            example = torch.tensor(index)[batch.response_of_M[inside].cpu()]
            found = best.exp(), predicted == targets, gold.exp(), example
            parts.append([tensor.cpu() for tensor in found])
    return TokenScores(*(torch.cat(part) for part in zip(*parts, strict=True)))
