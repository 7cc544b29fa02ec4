"""A causal language model as a scorer of responses: from a packed batch to log-probabilities."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from firstkd.data.packing import Batch, batches_by_length, pack
from firstkd.data.prompts import Question
from firstkd.errors import ArtifactError
from firstkd.models.head import (
    HeadScores,
    chunks,
    head_logits,
    head_scores,
    within,
)
from firstkd.terms.divergences import choice_scores


class ScoringHead(nn.Module):
    """The output embedding, asked for some log-probabilities instead of all logits.

    A module of its own, and called as one, so that what hooks into modules (ZeRO, data
    parallelism) sees its use.
    """

    def __init__(self, head: Any, softcap: float | None) -> None:
        super().__init__()
        self.weight = head.weight
        self.bias = head.bias
        self.softcap = softcap

    def forward(
        self,
        hidden_NH: Tensor,
        rows_M: Tensor,
        targets_M: Tensor,
        decisions_R: Tensor,
        top_ids_RK: Tensor,
    ) -> HeadScores:
        return head_scores(
            hidden_NH, self.weight, rows_M, targets_M, decisions_R, top_ids_RK,
            self.bias, self.softcap,
        )  # fmt: skip

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Logits [N, V] in float32: for few positions at a time."""
        return head_logits(hidden_NH, self.weight, self.bias, self.softcap)


class ResponseScorer(nn.Module):
    """Wraps a causal language model; its parameters are the model's own."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Raises ArtifactError for a model whose logits are more than its head's, soft-capped."""
        super().__init__()
        for name in ("logits_scaling", "logit_scale"):  # Granite's, Cohere's
            if (scale := getattr(model.config, name, None)) not in (None, 1.0):
                raise ArtifactError(
                    f"the model's config.json has {name}: {scale}; models that scale their logits "
                    "are not supported, choose another for fetch.model"
                )
        self.backbone = model.base_model
        softcap = getattr(model.config, "final_logit_softcapping", None)
        self.head = ScoringHead(model.get_output_embeddings(), softcap)

    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden states [N, H] at the supervised positions."""
        mask = batch.attention_mask_B1LL
        if mask is not None:
            # added to the attention scores: the one form that every implementation takes
            dtype = self.head.weight.dtype
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
        hidden_BLH: Tensor = self.backbone(
            input_ids=batch.input_ids_BL,
            position_ids=batch.position_ids_BL,
            attention_mask=mask,
            use_cache=False,
        ).last_hidden_state
        return hidden_BLH.flatten(0, 1)[batch.positions_N]

    def forward(self, batch: Batch, top_ids_RK: Tensor | None = None) -> HeadScores:
        """Score the batch's M tokens, and `top_ids_RK` at each of the R tokens of right responses.

        Without `top_ids_RK` there are no decisions: R = 0.
        """
        decisions_R = batch.rows_M[batch.is_gold_M]
        if top_ids_RK is None:
            decisions_R = decisions_R[:0]
            top_ids_RK = decisions_R[:, None]
        scores: HeadScores = self.head(
            self.hidden(batch), batch.rows_M, batch.targets_M, decisions_R, top_ids_RK
        )
        return scores


def cross_entropy(
    scorer: ResponseScorer, batch: Batch, progress: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean over the tokens of right responses, whatever the progress of the training."""
    return -scorer(batch).logprobs_M[batch.is_gold_M].mean(), {}


@torch.inference_mode()
def score_questions(
    model: PreTrainedModel, questions: Sequence[Question], batch_size: int, title: str = ""
) -> Tensor:
    """Choice scores [E, C] in float32, −inf where a question has fewer choices.

    With a title, progress is shown under it.
    """
    scorer = ResponseScorer(model).eval()
    num_choices = max(len(question.responses) for question in questions)
    scores_EC = torch.full((len(questions), num_choices), -torch.inf)
    for index in _with_progress(batches_by_length(questions, batch_size), len(questions), title):
        batch = pack(questions, index).to(model.device)
        logprobs = scorer(batch).logprobs_M
        scores = choice_scores(logprobs, batch.response_of_M, batch.choice_mask_BC)
        scores_EC[index, : scores.shape[1]] = scores.cpu()
    return scores_EC


def _with_progress(
    batches: Iterable[list[int]], num_questions: int, title: str
) -> Iterator[list[int]]:
    with tqdm(total=num_questions, desc=title, unit="question", disable=not title) as progress:
        for index in batches:
            yield index
            progress.update(len(index))


@dataclass(frozen=True)
class TokenScores:
    """What a model thinks at each of T tokens of right responses, given what comes before."""

    confidence_T: Tensor
    """Probability of the token it finds most probable."""
    correct_T: Tensor
    """True where that is the token."""
    probability_T: Tensor
    """Of the token itself."""
    example_T: Tensor
    """Index of the question whose response it is in."""


@torch.inference_mode()
def score_tokens(
    model: PreTrainedModel, questions: Sequence[Question], batch_size: int, title: str = ""
) -> TokenScores:
    """Score every token of the right responses, teacher-forced, in float32.

    With a title, progress is shown under it.
    """
    scorer = ResponseScorer(model).eval()
    questions = [question.gold_only() for question in questions]
    parts = []
    for index in _with_progress(batches_by_length(questions, batch_size), len(questions), title):
        batch = pack(questions, index).to(model.device)
        hidden = scorer.hidden(batch)
        for start, end in chunks(len(hidden)):
            inside = within(batch.rows_M, start, end)
            logprobs = scorer.head.logits(hidden[start:end]).log_softmax(-1)
            best, predicted = logprobs[batch.rows_M[inside] - start].max(-1)
            targets = batch.targets_M[inside]
            gold = logprobs[batch.rows_M[inside] - start, targets]
            # of one response a question, the response's number is the question's in the batch
            example = torch.tensor(index)[batch.response_of_M[inside].cpu()]
            found = best.exp(), predicted == targets, gold.exp(), example
            parts.append([tensor.cpu() for tensor in found])
    return TokenScores(*(torch.cat(part) for part in zip(*parts, strict=True)))
