"""Width pruning: which feed-forward neurons the others can stand in for, and the model without."""

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
ROUNDS = 16
"""In which neurons go: more choose hardly better."""
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
    unexplained: float
    """Share of the output W x that they leave out, E‖W x − W' x_K‖² / E‖W x‖²."""


@memory_explained("while the activations of neurons were measured")
@torch.inference_mode()
def choose_neurons(
    model: PreTrainedModel,
    size: int,
    questions: Sequence[Question],
    batch_size: int,
    batch_tokens: int = BATCH_TOKENS,
) -> list[Chosen]:
    """Choose neurons of each layer that can stand in for all, and outgoing weights for them.

    Layers whose products of activations do not fit `PRODUCTS_BYTES` take several passes.
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
    tokens = pass_through(scorer, questions, batches, current, "activations of neurons")
    for hook in hooks:
        hook.remove()
    for sums_II in sums:
        yield sums_II.double().cpu() / tokens


def stand_ins(products_II: Tensor, weights_HI: Tensor, size: int) -> Chosen:
    """Choose K neurons and the outgoing weights with which they stand in for all.

    This is the optimal brain surgeon (Hassibi and Stork 1993) for whole columns of the weights, as
    in ZipLM (Kurtić et al. 2023, eqs. 2 and 3), damped as in SparseGPT (Frantar and Alistarh 2023):
    with C the inverse of the products, leaving out neuron i costs ‖w_i‖² / C_ii after the others
    are fitted to stand in for it. The cheapest go, the others are fitted, and so on, in `ROUNDS`.
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
