"""What an arm's student is trained to match: the teacher's recalibrated decisions."""

from dataclasses import dataclass

from torch import Tensor

from firstkd.knowledge import KnowledgeStore
from firstkd.objective import choice_kl, choice_scores, sparse_kl
from firstkd.packing import Batch
from firstkd.recalibration import Recalibration
from firstkd.scoring import ResponseScorer
from firstkd.settings import Arm


@dataclass(frozen=True, kw_only=True)
class DistillationLoss:
    """The weighted sum of an arm's terms, each a mean over the batch's decisions of its kind."""

    arm: Arm
    choice_knowledge: KnowledgeStore | None
    token_knowledge: KnowledgeStore | None
    choice_recalibration: Recalibration
    token_recalibration: Recalibration

    def __call__(self, scorer: ResponseScorer, batch: Batch) -> Tensor:
        arm, device = self.arm, batch.input_ids_BL.device
        tokens = None
        if self.token_knowledge and arm.tokens:
            tokens = self.token_knowledge.of_examples(batch.index_B.cpu())
        logprobs, top_logprobs, log_tail = scorer(batch, tokens and tokens.top_ids.to(device))
        loss: Tensor = logprobs.new_zeros(())
        if arm.gold_tokens:
            loss = loss - arm.gold_tokens * logprobs[batch.is_gold_M].mean()
        if self.choice_knowledge and arm.choices:
            choices = self.choice_knowledge.of_examples(batch.index_B.cpu())
            target = self.choice_recalibration.apply(choices.top_logprobs).to(device)
            scores = choice_scores(logprobs, batch.response_of_M, batch.choice_mask_BC)
            scores = scores[batch.choice_mask_BC.sum(-1) > 1]  # open text decides no choice
            divergence = choice_kl(target[:, : scores.shape[1]], scores)
            loss = loss + arm.choices * divergence.sum() / max(1, len(divergence))
        if tokens:
            target = self.token_recalibration.apply(tokens.top_logprobs).to(device)
            divergence = sparse_kl(target, top_logprobs, log_tail, arm.tail)
            loss = loss + arm.tokens * divergence.mean()
        return loss
