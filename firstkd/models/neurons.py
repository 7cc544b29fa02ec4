"""Width pruning: choose the feed-forward neurons that others can stand in for, and remove them."""

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
"""Memory budget for products of activations."""
DAMPING = 0.01
"""Ridge, as a share of the neurons' mean square."""
ROUNDS = 16
"""Rounds in which neurons are removed; more rounds hardly choose better ones."""
TINY = torch.finfo(torch.float64).tiny


def feed_forwards(model: Any) -> list[nn.Module]:
    """Return each decoder layer's feed-forward block, I neurons wide.

    Raises ArtifactError unless each layer has exactly one gated block of that width.
    """
    width = getattr(model.config, "intermediate_size", None)
    blocks = [
        [m for m in layer.modules() if _is_gated(m, width)] for layer in decoder_layers(model)
    ]
    if not all(len(found) == 1 for found in blocks):
        raise ArtifactError(
            f"{model.config.model_type}: not every layer has exactly one feed-forward block of "
            "gate_proj, up_proj and down_proj, so it cannot be narrowed; use kind prune, or choose "
            "another model"
        )
    return [found[0] for found in blocks]


def _is_gated(module: nn.Module, width: int | None) -> bool:
    matrices = [getattr(module, name, None) for name in GATED]
    linear = [matrix for matrix in matrices if isinstance(matrix, nn.Linear)]
    return len(linear) == len(GATED) and linear[2].in_features == width


class Chosen(NamedTuple):
    """The neurons kept in a layer."""

    kept_K: Tensor
    """Their indices, ascending."""
    weights_HK: Tensor
    """Their outgoing weights, fitted to stand in for the others, too."""
    unexplained: float
    """Share of the output W x that they do not explain, E‖W x − W' x_K‖² / E‖W x‖²."""


@memory_explained("while measuring neuron activations")
@torch.inference_mode()
def choose_neurons(
    model: PreTrainedModel,
    size: int,
    questions: Sequence[Question],
    batch_size: int,
    batch_tokens: int = BATCH_TOKENS,
) -> list[Chosen]:
    """Choose each layer's neurons that can stand in for all, and fit their outgoing weights.

    If the layers' products of activations exceed `PRODUCTS_BYTES`, this takes several passes.
    """
    blocks: list[Any] = feed_forwards(model)
    at_once = max(1, PRODUCTS_BYTES // (4 * model.config.intermediate_size**2))
    chosen = []
    for first in range(0, len(blocks), at_once):
        some = blocks[first : first + at_once]
        products = activation_products(model, some, questions, batch_size, batch_tokens)
        for block, products_II in zip(some, products, strict=True):
            chosen.append(stand_ins(products_II, block.down_proj.weight.double().cpu(), size))
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
    tokens = pass_through(scorer, questions, batches, current, "neuron activations")
    for hook in hooks:
        hook.remove()
    for sums_II in sums:
        yield sums_II.double().cpu() / tokens


def stand_ins(products_II: Tensor, weights_HI: Tensor, size: int) -> Chosen:
    """Choose K neurons, and fit their outgoing weights so that they stand in for all.

    This is the optimal brain surgeon (Hassibi and Stork 1993) for whole columns of the weights, as
    in ZipLM (Kurtić et al. 2023, eqs. 2 and 3), damped as in SparseGPT (Frantar and Alistarh 2023):
    with C the inverse of the products, removing neuron i costs ‖w_i‖² / C_ii once the others are
    fitted to stand in for it. Each of `ROUNDS` rounds removes the cheapest and fits the others.
    """
    ridge = (DAMPING * products_II.diagonal().mean()).clamp_min(TINY)
    damped_II = products_II + ridge * torch.eye(len(products_II), dtype=ridge.dtype)
    inverse_KK = torch.cholesky_inverse(torch.linalg.cholesky(damped_II))
    kept_K, weights_HK = torch.arange(len(products_II)), weights_HI
    for left in torch.linspace(len(kept_K), size, ROUNDS + 1).round().long().tolist()[1:]:
        costs_K = weights_HK.square().sum(0) / inverse_KK.diagonal()
        stays_K = torch.zeros(len(kept_K), dtype=torch.bool)
        stays_K[costs_K.topk(left).indices] = True
        inverse_GK = inverse_KK[~stays_K]
        shares_GS = torch.linalg.solve(inverse_GK[:, ~stays_K], inverse_GK[:, stays_K])
        weights_HK = weights_HK[:, stays_K] - weights_HK[:, ~stays_K] @ shares_GS
        inverse_KK = inverse_KK[stays_K][:, stays_K] - inverse_GK[:, stays_K].T @ shares_GS
        kept_K = kept_K[stays_K]
    error_HI = weights_HI.index_add(1, kept_K, weights_HK, alpha=-1)
    missing, whole = ((of @ products_II * of).sum() for of in (error_HI, weights_HI))
    return Chosen(kept_K, weights_HK, float(missing / whole.clamp_min(TINY)))


@torch.inference_mode()
def logits_of_neurons(model: Any, kept: Sequence[Tensor], input_ids_BL: Tensor) -> Tensor:
    """Logits [B, L, V] of the model with each layer's other neurons silenced."""

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
    """Give the chosen neurons their new outgoing weights, in place, rounded to bfloat16."""
    blocks: list[Any] = feed_forwards(model)
    for block, layer in zip(blocks, chosen, strict=True):
        weight = block.down_proj.weight
        weight.data[:, layer.kept_K] = layer.weights_HK.bfloat16().to(weight)


def keep_neurons(model: Any, kept: Sequence[Tensor]) -> None:
    """Remove all feed-forward neurons but these, equally many in each layer, in place."""
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
