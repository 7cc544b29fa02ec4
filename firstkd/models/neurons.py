"""Width pruning: which feed-forward neurons matter least, and the model without them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from firstkd.data.packing import BATCH_TOKENS, Batch, batches_by_length
from firstkd.data.prompts import Question
from firstkd.errors import ArtifactError
from firstkd.memory import memory_explained
from firstkd.models.layers import decoder_layers
from firstkd.models.pruning import pass_through
from firstkd.models.scoring import ResponseScorer

GATED = ("gate_proj", "up_proj", "down_proj")
"""The three matrices of a gated feed-forward block, as most families call them."""


def feed_forwards(model: Any) -> list[nn.Module]:
    """Return each decoder layer's feed-forward block, I neurons wide.

    Raises ArtifactError for a family without exactly one gated block of that width in each layer.
    """
    width = getattr(model.config, "intermediate_size", None)
    blocks = [
        [m for m in layer.modules() if _is_gated(m, width)] for layer in decoder_layers(model)
    ]
    if not all(len(found) == 1 for found in blocks):
        raise ArtifactError(
            f"{model.config.model_type}: not one feed-forward block of gate_proj, up_proj and "
            "down_proj in each layer, so it cannot be narrowed; use a start of the kind prune, or "
            "choose another model"
        )
    return [found[0] for found in blocks]


def _is_gated(module: nn.Module, width: int | None) -> bool:
    matrices = [getattr(module, name, None) for name in GATED]
    linear = [matrix for matrix in matrices if isinstance(matrix, nn.Linear)]
    return len(linear) == len(GATED) and linear[2].in_features == width


@memory_explained("while the influence of neurons was measured")
@torch.inference_mode()
def neuron_influence(
    model: PreTrainedModel,
    questions: Sequence[Question],
    batch_size: int,
    batch_tokens: int = BATCH_TOKENS,
) -> Tensor:
    """Return [layers, I]: the root mean square of what each neuron adds to the hidden states.

    That is ‖a‖ ‖w‖ / √T over the T tokens of the questions, of activation a and outgoing weights w:
    Wanda's criterion (Sun et al. 2024, eq. 1) for a whole column.
    """
    scorer = ResponseScorer(model).eval()
    blocks: list[Any] = feed_forwards(model)
    squares = torch.zeros(len(blocks), model.config.intermediate_size, dtype=torch.float64)
    current: list[Batch] = []

    def add_squares(layer: int, activations_BLI: Tensor) -> None:
        activations_TI = activations_BLI[current[0].is_token_BL]
        squares[layer] += activations_TI.float().square().sum(0).double().cpu()

    hooks = [
        block.down_proj.register_forward_pre_hook(lambda _, given, i=i: add_squares(i, given[0]))
        for i, block in enumerate(blocks)
    ]
    batches = batches_by_length(questions, batch_size, batch_tokens)
    tokens = pass_through(scorer, questions, batches, current, "neuron influence")
    for hook in hooks:
        hook.remove()
    norms = torch.stack([block.down_proj.weight.double().norm(dim=0).cpu() for block in blocks])
    return (squares / tokens).sqrt() * norms


@torch.inference_mode()
def logits_of_neurons(model: Any, kept: Sequence[Tensor], input_ids_BL: Tensor) -> Tensor:
    """Logits [B, L, V] of the model with all other neurons of each layer silent."""

    def only(neurons: Tensor) -> Any:
        def silence(_: nn.Module, given: tuple[Tensor]) -> Tensor:
            heard = torch.zeros_like(given[0])
            heard[..., neurons] = given[0][..., neurons]
            return heard

        return silence

    blocks: list[Any] = feed_forwards(model)
    hooks = [
        block.down_proj.register_forward_pre_hook(only(neurons))
        for block, neurons in zip(blocks, kept, strict=True)
    ]
    logits: Tensor = model(input_ids=input_ids_BL, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return logits


def keep_neurons(model: Any, kept: Sequence[Tensor]) -> None:
    """Remove all feed-forward neurons but these of each layer, equally many, in place."""
    blocks: list[Any] = feed_forwards(model)
    for block, neurons in zip(blocks, kept, strict=True):
        for name in GATED[:2]:
            matrix = getattr(block, name)
            matrix.weight = nn.Parameter(matrix.weight.detach()[neurons].clone())
            if matrix.bias is not None:
                matrix.bias = nn.Parameter(matrix.bias.detach()[neurons].clone())
            matrix.out_features = len(neurons)
        down = block.down_proj
        down.weight = nn.Parameter(down.weight.detach()[:, neurons].clone())
        down.in_features = len(neurons)
    model.config.intermediate_size = len(kept[0])
