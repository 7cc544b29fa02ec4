"""Depth pruning: find the layers that matter least to a model, and remove them."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from firstkd.data.packing import BATCH_TOKENS, Batch, batches_by_length, pack
from firstkd.data.prompts import Question
from firstkd.errors import ArtifactError
from firstkd.memory import memory_explained
from firstkd.models.layers import decoder_layers, hidden_given
from firstkd.models.scoring import ResponseScorer


@memory_explained("while measuring layer influence")
@torch.inference_mode()
def block_influence(
    model: PreTrainedModel,
    questions: Sequence[Question],
    batch_size: int,
    batch_tokens: int = BATCH_TOKENS,
) -> Tensor:
    """Return for each layer 1 − mean cosine of its input and output (Men et al. 2024, eq. 1).

    A layer that hardly rotates its input hardly changes it. The mean is over the questions' tokens.
    """
    scorer = ResponseScorer(model).eval()
    layers = decoder_layers(model)
    total = torch.zeros(len(layers), dtype=torch.float64)
    current: list[Batch] = []

    def add_cosine(layer: int, before: Tensor, after: Tensor) -> None:
        cosine = F.cosine_similarity(before.float(), after.float(), dim=-1)
        total[layer] += cosine[current[0].is_token_BL].sum().double().cpu()

    # hooks, since the model's own last hidden state has already passed the final norm
    hooks = [
        layer.register_forward_hook(
            lambda _, inputs, named, output, i=i: add_cosine(
                i, hidden_given(inputs, named), output[0] if isinstance(output, tuple) else output
            ),
            with_kwargs=True,
        )
        for i, layer in enumerate(layers)
    ]
    batches = batches_by_length(questions, batch_size, batch_tokens)
    tokens = pass_through(scorer, questions, batches, current, "layer influence")
    for hook in hooks:
        hook.remove()
    return 1 - total / tokens


def pass_through(
    scorer: ResponseScorer,
    questions: Sequence[Question],
    batches: Sequence[list[int]],
    current: list[Batch],
    title: str,
) -> int:
    """Run one forward pass per batch, for hooks that read the batch from `current`.

    Returns the number of tokens.
    """
    tokens = 0
    for index in tqdm(batches, desc=title):
        current[:] = [pack(questions, index).to(scorer.head.weight.device)]
        scorer.hidden(current[0])
        tokens += current[0].tokens
    return tokens


def most_influential(influence: Tensor, layers: int) -> list[int]:
    """Return the indices, ascending, of the layers to keep."""
    return sorted(influence.topk(layers).indices.tolist())


@torch.inference_mode()
def logits_without(model: Any, layers: Sequence[int], input_ids_BL: Tensor) -> Tensor:
    """Logits [B, L, V] of the model when it skips all layers but these."""
    hooks = [
        layer.register_forward_hook(
            lambda _, inputs, named, output: (
                (hidden_given(inputs, named), *output[1:])
                if isinstance(output, tuple)
                else hidden_given(inputs, named)
            ),
            with_kwargs=True,
        )
        for i, layer in enumerate(decoder_layers(model))
        if i not in layers
    ]
    logits: Tensor = model(input_ids=input_ids_BL, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return logits


def keep_layers(model: Any, layers: Sequence[int]) -> None:
    """Remove all decoder layers but these, in place, and the others' entries in the config.

    Raises ArtifactError as `decoder_layers` does.
    """
    all_layers, config = decoder_layers(model), model.config
    kept = [all_layers[i] for i in layers]
    for position, layer in enumerate(kept):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                vars(module)["layer_idx"] = position
    for name, value in cut_lists(config.to_dict(), config.num_hidden_layers, layers).items():
        setattr(config, name, value)
    config.num_hidden_layers = len(kept)
    del all_layers[len(kept) :]
    for position, layer in enumerate(kept):
        all_layers[position] = layer


def cut_lists(config: dict[str, Any], count: int, layers: Sequence[int]) -> dict[str, list[Any]]:
    """Return a config's lists about its `count` layers, cut down to `layers`.

    A list has one entry per layer (`layer_types`, `no_rope_layers`), or the numbers of some layers
    (`mlp_only_layers`), which are renumbered.
    """
    found: dict[str, list[Any]] = {}
    for name, value in config.items():
        if not isinstance(value, list):
            continue
        numbers = all(type(entry) is int and 0 <= entry < count for entry in value)
        ascending = numbers and value == sorted(set(value))
        if len(value) == count and not (ascending and count > 2):
            found[name] = [value[i] for i in layers]
        elif value and ascending and ("layer" in name or "idx" in name):
            found[name] = [new for new, old in enumerate(layers) if old in value]
    return found


def check_same_logits(
    expected: Tensor, found: Tensor, family: str, reordering: float = 0.0
) -> None:
    """Raise ArtifactError unless a pruned model, saved and reloaded, gives the expected logits.

    `reordering` is how much another order of summation may change them, as a share of the largest.
    """
    eps = max(torch.finfo(t.dtype).eps for t in (expected, found))
    tolerance = max(4 * eps, reordering) * float(expected.abs().max())
    difference = float((expected.float() - found.float()).detach().abs().max())
    if difference > tolerance:
        raise ArtifactError(
            f"{family}: the pruned model's logits differ by {difference:.3g} from the base model's "
            "with the same parts disabled, so this family cannot be pruned; choose another student"
        )
