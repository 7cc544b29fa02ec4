"""Width pruning: which feed-forward neurons matter least, and the model without them."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

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
PRODUCTS_BYTES = 2**30
"""Memory for products of activations at a time."""
DAMPING = 0.01
"""Ridge, as a share of the neurons' mean square."""
TINY = torch.finfo(torch.float64).tiny


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


class Chosen(NamedTuple):
    """The neurons of a layer that are kept."""

    kept_K: Tensor
    """Their places, ascending."""
    weights_HK: Tensor
    """Their outgoing weights, which stand in for the others, too."""
    share_of_influence: float
    unexplained: float
    """Share of the square of the layer's output that these weights leave out."""


@memory_explained("while the activations of neurons were measured")
@torch.inference_mode()
def choose_neurons(
    model: PreTrainedModel,
    size: int,
    questions: Sequence[Question],
    batch_size: int,
    batch_tokens: int = BATCH_TOKENS,
) -> list[Chosen]:
    """Choose each layer's most influential neurons, and outgoing weights for them.

    Layers whose products of activations do not fit `PRODUCTS_BYTES` take several passes.
    """
    blocks: list[Any] = feed_forwards(model)
    at_once = max(1, PRODUCTS_BYTES // (4 * model.config.intermediate_size**2))
    chosen = []
    for first in range(0, len(blocks), at_once):
        some = blocks[first : first + at_once]
        products = activation_products(model, some, questions, batch_size, batch_tokens)
        for block, products_II in zip(some, products, strict=True):
            weights_HI = block.down_proj.weight.double().cpu()
            influence_I = neuron_influence(products_II, weights_HI)
            kept_K = influence_I.topk(size).indices.sort().values
            weights_HK, unexplained = refitted(products_II, weights_HI, kept_K)
            share = float(influence_I[kept_K].sum() / influence_I.sum())
            chosen.append(Chosen(kept_K, weights_HK, share, unexplained))
    return chosen


@torch.inference_mode()
def activation_products(
    model: PreTrainedModel,
    blocks: Sequence[Any],
    questions: Sequence[Question],
    batch_size: int,
    batch_tokens: int = BATCH_TOKENS,
) -> Iterator[Tensor]:
    """Yield for each block [I, I]: products of its neurons' activations, averaged over tokens."""
    scorer = ResponseScorer(model).eval()
    width = model.config.intermediate_size
    sums = [torch.zeros(width, width, device=block.down_proj.weight.device) for block in blocks]
    current: list[Batch] = []

    def add_products(sums_II: Tensor, activations_BLI: Tensor) -> None:
        activations_TI = activations_BLI[current[0].is_token_BL].float()
        sums_II.addmm_(activations_TI.T, activations_TI)

    hooks = [
        block.down_proj.register_forward_pre_hook(
            lambda _, given, of=of: add_products(of, given[0])
        )
        for block, of in zip(blocks, sums, strict=True)
    ]
    batches = batches_by_length(questions, batch_size, batch_tokens)
    tokens = pass_through(scorer, questions, batches, current, "activations of neurons")
    for hook in hooks:
        hook.remove()
    for sums_II in sums:
        yield sums_II.double().cpu() / tokens


def neuron_influence(products_II: Tensor, weights_HI: Tensor) -> Tensor:
    """Return [I]: the root mean square of what each neuron adds to the hidden states.

    That is ‖a‖ ‖w‖ / √T over T tokens, of activation a and outgoing weights w: Wanda's criterion
    (Sun et al. 2024, eq. 1) for a whole column.
    """
    influence_I: Tensor = products_II.diagonal().sqrt() * weights_HI.norm(dim=0)
    return influence_I


def refitted(products_II: Tensor, weights_HI: Tensor, kept_K: Tensor) -> tuple[Tensor, float]:
    """Return outgoing weights [H, K] of the kept neurons that stand in for all, and the share of
    the output that they leave out, E‖W x − W' x_K‖² / E‖W x‖².

    They are the least squares fit over tokens of W x by W' x_K, with a ridge towards W_K: the
    compensation of the optimal brain surgeon (Hassibi and Stork 1993) for whole columns, damped as
    in SparseGPT (Frantar and Alistarh 2023).
    """
    silent_I = torch.ones(len(products_II), dtype=torch.bool)
    silent_I[kept_K] = False
    products_KK = products_II[kept_K][:, kept_K]
    ridge = (DAMPING * products_KK.diagonal().mean()).clamp_min(TINY)
    missed_KH = products_II[kept_K][:, silent_I] @ weights_HI[:, silent_I].T
    weights_HK = (
        weights_HI[:, kept_K]
        + torch.linalg.solve(
            products_KK + ridge * torch.eye(len(kept_K), dtype=ridge.dtype), missed_KH
        ).T
    )
    error_HI = weights_HI.clone()
    error_HI[:, kept_K] -= weights_HK
    missing, whole = ((of @ products_II * of).sum() for of in (error_HI, weights_HI))
    return weights_HK, float(missing / whole.clamp_min(TINY))


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


def refit_neurons(model: Any, chosen: Sequence[Chosen]) -> None:
    """Give the chosen neurons their new outgoing weights, in place, in bfloat16's precision."""
    blocks: list[Any] = feed_forwards(model)
    for block, layer in zip(blocks, chosen, strict=True):
        weight = block.down_proj.weight
        weight.data[:, layer.kept_K] = layer.weights_HK.bfloat16().to(weight)


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
