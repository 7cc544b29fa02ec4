"""What an arm's student is trained to match: the teacher's recalibrated decisions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstkd.data.packing import Batch
from firstkd.models.head import HeadScores, choice_kl, choice_scores, sparse_kl
from firstkd.models.scoring import ResponseScorer
from firstkd.recalibration.base import Recalibration
from firstkd.signals.knowledge import KnowledgeStore
from firstkd.terms.settings import Arm

Measures = dict[str, Tensor]


@dataclass(frozen=True)
class Lessons:
    """One kind of the teacher's decisions, as the student is to make them."""

    knowledge: KnowledgeStore
    recalibration: Recalibration

    def of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Candidates' ids [R, K] and target probabilities [R, K] of the batch's questions."""
        found = self.knowledge.of_examples(batch.index_B.cpu())
        target = self.recalibration.apply(found)
        device = batch.input_ids_BL.device
        return found.top_ids.to(device), target.to(device)


@dataclass(frozen=True, kw_only=True)
class DistillationLoss:
    """The weighted sum of an arm's terms, each a mean over the batch's decisions of its kind.

    Where an arm learns from choices, too, the weight of the tokens falls linearly to 0 over the
    training: first the language, then the decision. A teacher's tokens say of a choice what it
    said before it was recalibrated, so at a constant weight they work against the choices. A term
    that the arm gives no weight needs no lessons.
    """

    arm: Arm
    choices: Lessons | None
    tokens: Lessons | None

    def __call__(
        self, scorer: ResponseScorer, batch: Batch, progress: float
    ) -> tuple[Tensor, Measures]:
        """The loss at this share of the steps, and what the same pass shows of each term."""
        arm = self.arm
        top_ids, token_target = self.tokens.of(batch) if self.tokens else (None, None)
        found: HeadScores = scorer(batch, top_ids)
        loss = found.logprobs_M.new_zeros(())
        measures: Measures = {}
        if arm.gold_tokens:
            cross_entropy = -found.logprobs_M[batch.is_gold_M].mean()
            measures["gold_cross_entropy"] = cross_entropy.detach()
            loss = loss + arm.gold_tokens * cross_entropy
        if self.choices:
            _, target = self.choices.of(batch)
            scores = choice_scores(found.logprobs_M, batch.response_of_M, batch.choice_mask_BC)
            scores = scores[batch.choice_mask_BC.sum(-1) > 1]  # open text decides no choice
            target = target[:, : scores.shape[1]]
            divergence = choice_kl(target, scores).sum() / max(1, len(scores))
            if len(scores):
                agree = target.argmax(-1) == scores.argmax(-1)
                measures["choice_kl"] = divergence.detach()
                measures["choice_agreement"] = agree.float().mean()
            loss = loss + arm.choices * divergence
        if token_target is not None:
            divergence = sparse_kl(
                token_target, found.top_logprobs_RK, found.log_tail_R, arm.tail
            ).mean()
            measures |= {"token_kl": divergence.detach(), **token_measures(found, token_target)}
            loss = loss + arm.tokens * (1 - progress if arm.choices else 1) * divergence
        return loss, measures


@torch.no_grad()
def token_measures(found: HeadScores, target_RK: Tensor) -> Measures:
    """How often teacher and student would say the same token, and the student's mass on the head.

    The teacher would say its most probable candidate.
    """
    teachers = target_RK.argmax(-1, keepdim=True)
    best = torch.maximum(found.top_logprobs_RK.amax(-1), found.best_of_tail_R)
    agree = found.top_logprobs_RK.gather(-1, teachers)[:, 0] == best
    return {
        "token_agreement": agree.float().mean(),
        "head_mass": found.top_logprobs_RK.exp().sum(-1).mean(),
    }
