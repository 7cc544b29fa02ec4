"""Depth pruning: which of a model's layers matter least."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from firstkd.packing import batches_by_length, pack
from firstkd.prompts import Question


@torch.inference_mode()
def block_influence(
    model: PreTrainedModel, questions: Sequence[Question], batch_size: int
) -> Tensor:
    """Return for each layer 1 − mean cosine of its input and output (Men et al. 2024, eq. 1).

    What a layer hardly turns, it hardly changes. The mean is over the questions' tokens.
    """
    model.eval()
    total = torch.zeros(model.config.num_hidden_layers, dtype=torch.float64)
    tokens = 0
    for index in tqdm(batches_by_length(questions, batch_size), desc="layer influence"):
        batch = pack(questions, index, model.config.pad_token_id).to(model.device)
        states = model.base_model(
            input_ids=batch.input_ids_BL,
            position_ids=batch.position_ids_BL,
            attention_mask=batch.attention_mask_B1LL,
            use_cache=False,
            output_hidden_states=True,
        ).hidden_states
        for layer, (before, after) in enumerate(pairwise(states)):
            cosine = F.cosine_similarity(before.float(), after.float(), dim=-1)
            total[layer] += cosine[batch.is_token_BL].sum().double().cpu()
        tokens += batch.tokens
    return 1 - total / tokens


def most_influential(influence: Tensor, layers: int) -> list[int]:
    """Return the indices, ascending, of the layers to keep."""
    return sorted(influence.topk(layers).indices.tolist())
