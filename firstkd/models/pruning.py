"""Depth pruning: which of a model's layers matter least."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from firstkd.data.packing import Batch, batches_by_length, pack
from firstkd.data.prompts import Question
from firstkd.models.scoring import ResponseScorer


@torch.inference_mode()
def block_influence(
    model: PreTrainedModel, questions: Sequence[Question], batch_size: int
) -> Tensor:
    """Return for each layer 1 − mean cosine of its input and output (Men et al. 2024, eq. 1).

    What a layer hardly turns, it hardly changes. The mean is over the questions' tokens.
    """
    scorer = ResponseScorer(model).eval()
    layers: Any = model.base_model.layers
    total = torch.zeros(len(layers), dtype=torch.float64)
    current: list[Batch] = []

    def add_cosine(layer: int, before: Tensor, after: Tensor) -> None:
        cosine = F.cosine_similarity(before.float(), after.float(), dim=-1)
        total[layer] += cosine[current[0].is_token_BL].sum().double().cpu()

    # hooks, since the last of the model's own hidden states has been through the final norm
    hooks = [
        layer.register_forward_hook(
            lambda _, inputs, output, i=i: add_cosine(
                i, inputs[0], output[0] if isinstance(output, tuple) else output
            )
        )
        for i, layer in enumerate(layers)
    ]
    tokens = 0
    for index in tqdm(batches_by_length(questions, batch_size), desc="layer influence"):
        current[:] = [pack(questions, index).to(model.device)]
        scorer.hidden(current[0])
        tokens += current[0].tokens
    for hook in hooks:
        hook.remove()
    return 1 - total / tokens


def most_influential(influence: Tensor, layers: int) -> list[int]:
    """Return the indices, ascending, of the layers to keep."""
    return sorted(influence.topk(layers).indices.tolist())
